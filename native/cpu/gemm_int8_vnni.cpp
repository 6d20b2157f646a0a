// The products of weights in 8 bits by vpdpbusd, four multiply-adds per lane and instruction: AVX512-VNNI, and AVX-VNNI for
// processors without AVX-512. Blocking as in gemm_int8_block.h; the bits are those of the processors that have neither.
// One row is bound by reading weights, many by multiply-adds. One core of an AMD EPYC (Zen 5), AVX512-VNNI, 2026-11-22, over bf16 in
// turns in one process: 1.4 to 1.8 times with 8 to 512 rows of 3072×768 and 6144×1536. In registers and L1 a tile of 6×2 reaches 0.79 of
// the peak of 1.03 T/s, 12×1, whose every product loads a word of A, 0.72; without scales 6×2 reaches all of it: a multiplication
// and a multiply-add for each eight products use the same two units. Of the 74 ns that a group of A takes in 768×1536, its rounding is 5.
// Fetching B ahead is what brought 16 and 512 rows of 6144×1536, which come from L3, from 0.25 and 0.45 to 0.65 and 0.69 T/s. Tried:
// 16, 24 and 48 groups between loads of C (0.9, 0.95, 1.0); rows rounded by each task, and bytes written where they stay (1.0).
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
void roundInt8(const cpu::Product& product, cpu::Range rows, std::byte* to) { roundRows<FourDots>(product, rows, to); }

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
void roundInt8(const cpu::Product& product, cpu::Range rows, std::byte* to) { roundRows<FourDots>(product, rows, to); }

}  // namespace selscan::avx512vnni
#undef SELSCAN_AVX512
#undef ISA
SELSCAN_POP_TARGET
#endif
