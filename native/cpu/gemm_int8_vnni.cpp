// The products of weights in 8 bits by vpdpbusd, four multiply-adds per lane and instruction: AVX512-VNNI, and AVX-VNNI for
// processors without AVX-512. Blocking as in gemm_int8_block.h; the bits are those of the processors that have neither.
// One row is bound by reading weights, many by multiply-adds; from 4 rows on all are rounded ahead. Two cores of an AMD EPYC
// (Zen 5), AVX512-VNNI, 2026-11-22, over bf16 in turns in one process: one row of 3072×768 1.8 times, 8 rows 1.4, 64 and 512
// rows 1.2 to 1.3. One row of 50280×768 reads 35 of 38 GB/s. Tried: tiles of 6×2 and 4×3 instead of 12×1, all the same within 2 %;
// rows rounded by every task (64 rows of 768×1536: 0.9); two reductions in the rounding instead of three, its bytes written where
// they stay (512 rows: 1.1 instead of 1.3).
#include "cpu/isa.h"
#if SELSCAN_X86
#include <cstring>

#include "cpu/gemm_int8.h"
#include "cpu/gemm_kernels.h"
#include "cpu/simd.h"

namespace selscan::avxvnni {
using namespace avx2;
}
namespace selscan::avx512vnni {
using namespace avx512;
}

SELSCAN_PUSH_TARGET_AVXVNNI
#define ISA avxvnni
#define SELSCAN_AVX2 1
#include "cpu/gemm_int8_block.h"

namespace selscan::avxvnni {
namespace {

struct FourDots {
  static constexpr int Words = 1;
  static void pack(const int8_t* p, uint32_t* words) { std::memcpy(words, p, cpu::GroupSize); }
  using Sum = __m256i;
  using Right = __m256i;
  static Right right(const uint32_t* words) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(words)); }
  static Sum start(int32_t whole) { return _mm256_set1_epi32(whole); }
  static Sum add(const uint32_t* left, Right right, Sum sum) {
    return _mm256_dpbusd_avx_epi32(sum, right, _mm256_set1_epi32(static_cast<int>(*left)));
  }
  static F32 floats(Sum sum) { return {_mm256_cvtepi32_ps(sum)}; }
};

}  // namespace

void productInt8(const cpu::Product& product, const cpu::Block& block) { int8Block<FourDots>(product, block); }
void roundInt8(const cpu::Product& product, cpu::Range rows, std::byte* to) { roundInto<FourDots>(product, rows, to); }

}  // namespace selscan::avxvnni
#undef SELSCAN_AVX2
#undef ISA
SELSCAN_POP_TARGET

SELSCAN_PUSH_TARGET_AVX512VNNI
#define ISA avx512vnni
#define SELSCAN_AVX512 1
#include "cpu/gemm_int8_block.h"

namespace selscan::avx512vnni {
namespace {

struct FourDots {
  static constexpr int Words = 1;
  static void pack(const int8_t* p, uint32_t* words) { std::memcpy(words, p, cpu::GroupSize); }
  using Sum = __m512i;
  using Right = __m512i;
  static Right right(const uint32_t* words) { return _mm512_loadu_si512(words); }
  static Sum start(int32_t whole) { return _mm512_set1_epi32(whole); }
  static Sum add(const uint32_t* left, Right right, Sum sum) {
    return _mm512_dpbusd_epi32(sum, right, _mm512_set1_epi32(static_cast<int>(*left)));
  }
  static F32 floats(Sum sum) { return {_mm512_cvtepi32_ps(sum)}; }
};

}  // namespace

void productInt8(const cpu::Product& product, const cpu::Block& block) { int8Block<FourDots>(product, block); }
void roundInt8(const cpu::Product& product, cpu::Range rows, std::byte* to) { roundInto<FourDots>(product, rows, to); }

}  // namespace selscan::avx512vnni
#undef SELSCAN_AVX512
#undef ISA
SELSCAN_POP_TARGET
#endif
