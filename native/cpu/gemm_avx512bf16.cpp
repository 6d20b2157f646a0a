// bf16 products by vdpbf16ps, two multiply-adds per lane and instruction; blocking as in gemm_block.h.
#include "cpu/isa.h"
#if SELSCAN_X86
#include <cstring>

#include "cpu/gemm_kernels.h"
#include "cpu/simd.h"

SELSCAN_PUSH_TARGET_AVX512BF16
#define ISA avx512bf16
namespace selscan::avx512bf16 {
using avx512::F32;
using avx512::Lanes;
using avx512::load;
using avx512::set;
using avx512::store;
}  // namespace selscan::avx512bf16

#include "cpu/gemm_block.h"

namespace selscan::avx512bf16 {
namespace {

struct MultiplyDots {
  struct Right {
    __m512bh v;
  };
  static Right left(const uint32_t* word) { return {(__m512bh)_mm512_set1_epi32(static_cast<int>(*word))}; }
  static Right right(const uint32_t* words) { return {(__m512bh)_mm512_loadu_si512(words)}; }
  static F32 add(Right left, Right right, F32 sum) { return {_mm512_dpbf16_ps(sum.v, left.v, right.v)}; }
};

}  // namespace

void productDots(const cpu::Product& product, const cpu::Block& block) { blockProduct<MultiplyDots>(product, block); }

}  // namespace selscan::avx512bf16
#undef ISA
SELSCAN_POP_TARGET
#endif
