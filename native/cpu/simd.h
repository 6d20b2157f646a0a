// A vector of floats for each instruction set, under one interface: F32 in the namespaces portable (4 lanes, plain C++ for
// any compiler), avx2 (8) and avx512 (16). Kernels are written once over F32 and Lanes (cpu/each_isa.h compiles them for
// each set); cpu/simd_math.h adds exp2, log, softplus and the like on top.
//
// mul-adds are fused in avx2 and avx512 and not in portable: bits are the same for every thread count and cut of the work
// on one instruction set, not across sets.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "core/dtype.h"
#include "cpu/isa.h"

namespace selscan::cpu {
// Asks for the line at p, which lies in memory we own, to be near before it is read (or written) a microsecond from now.
inline void prefetch([[maybe_unused]] const float* p) {
#if defined(__GNUC__)
  __builtin_prefetch(p, 0, 2);
#endif
}
inline void prefetchToWrite([[maybe_unused]] const float* p) {
#if defined(__GNUC__)
  __builtin_prefetch(p, 1, 2);
#endif
}
}  // namespace selscan::cpu

namespace selscan::portable {
inline constexpr int Lanes = 4;
struct F32 {
  float v[Lanes];
};
#define SELSCAN_EACH_LANE(expression)                     \
  {                                                       \
    F32 out;                                              \
    for (int i = 0; i < Lanes; i++) out.v[i] = expression; \
    return out;                                           \
  }
inline F32 set(float x) SELSCAN_EACH_LANE(x)
inline F32 load(const float* p) SELSCAN_EACH_LANE(p[i])
inline F32 load(const float* p, int n) SELSCAN_EACH_LANE(i < n ? p[i] : 0.0f)
inline void store(float* p, F32 x) { std::memcpy(p, x.v, sizeof x.v); }
inline void store(float* p, F32 x, int n) { std::memcpy(p, x.v, sizeof(float) * (n < Lanes ? n : Lanes)); }
inline F32 operator+(F32 a, F32 b) SELSCAN_EACH_LANE(a.v[i] + b.v[i])
inline F32 operator-(F32 a, F32 b) SELSCAN_EACH_LANE(a.v[i] - b.v[i])
inline F32 operator*(F32 a, F32 b) SELSCAN_EACH_LANE(a.v[i] * b.v[i])
inline F32 operator/(F32 a, F32 b) SELSCAN_EACH_LANE(a.v[i] / b.v[i])
inline F32 fma(F32 a, F32 b, F32 c) SELSCAN_EACH_LANE(a.v[i] * b.v[i] + c.v[i])
// Where a or b is NaN, min and max give b: min(set(limit), x) lets NaN pass, min(x, set(limit)) hides it.
inline F32 min(F32 a, F32 b) SELSCAN_EACH_LANE(a.v[i] < b.v[i] ? a.v[i] : b.v[i])
inline F32 max(F32 a, F32 b) SELSCAN_EACH_LANE(a.v[i] > b.v[i] ? a.v[i] : b.v[i])
inline F32 sqrt(F32 a) SELSCAN_EACH_LANE(std::sqrt(a.v[i]))
inline F32 abs(F32 a) SELSCAN_EACH_LANE(std::fabs(a.v[i]))
inline float wholePart(float x, float shift) { return (x + shift) - shift; }
// To nearest even. Adding ±2^23 leaves no bits for a fraction; larger numbers are whole already.
inline F32 round(F32 a)
    SELSCAN_EACH_LANE(std::fabs(a.v[i]) < 8388608.0f ? wholePart(a.v[i], std::copysign(8388608.0f, a.v[i])) : a.v[i])
// a > b ? x : y, per lane.
inline F32 selectGreater(F32 a, F32 b, F32 x, F32 y) SELSCAN_EACH_LANE(a.v[i] > b.v[i] ? x.v[i] : y.v[i])
// x·2^n for x in [½, 2) and integral n ≤ 129: infinity above 2^128; 0 for n ≤ −123 (avx512 keeps what f32 can hold).
// NaN in x stays when n is NaN or in range. The exponent is added to a quarter of x, so that overflow happens in a product.
inline F32 scale2(F32 x, F32 n) {
  F32 out;
  for (int i = 0; i < Lanes; i++) {
    const int32_t whole = n.v[i] > -123.0f ? static_cast<int32_t>(n.v[i]) : 0;
    const float quarter = x.v[i] * 0.25f;
    uint32_t bits;
    std::memcpy(&bits, &quarter, 4);
    bits += static_cast<uint32_t>(whole) << 23;
    std::memcpy(&out.v[i], &bits, 4);
    out.v[i] = n.v[i] <= -123.0f ? 0.0f : out.v[i] * 4.0f;
  }
  return out;
}
// x itself, or `limit` where x is above it and scale2 would otherwise be asked for too much.
inline F32 withinScale(F32 x, float limit) { return min(set(limit), x); }
// m in [√½, √2) and integral e with x = m·2^e, for normal positive x.
inline void split2(F32 x, F32& m, F32& e) {
  for (int i = 0; i < Lanes; i++) {
    uint32_t bits;
    std::memcpy(&bits, &x.v[i], 4);
    const int32_t exponent = static_cast<int32_t>(bits - 0x3f3504f3u) >> 23;
    bits -= static_cast<uint32_t>(exponent) << 23;
    std::memcpy(&m.v[i], &bits, 4);
    e.v[i] = static_cast<float>(exponent);
  }
}
// Sum in one fixed order: pairs at distance Lanes/2, then Lanes/4, …
inline float sum(F32 a) { return (a.v[0] + a.v[2]) + (a.v[1] + a.v[3]); }
inline float maximum(F32 a) {
  float m = a.v[0];
  for (int i = 1; i < Lanes; i++) m = a.v[i] > m ? a.v[i] : m;
  return m;
}
inline bool allFinite(F32 a) {
  bool finite = true;
  for (const float x : a.v) finite &= std::fabs(x) < INFINITY;
  return finite;
}
inline F32 loadBf16(const uint16_t* p) SELSCAN_EACH_LANE(fromBf16(p[i]))
inline F32 loadF16(const uint16_t* p) SELSCAN_EACH_LANE(fromF16(p[i]))
inline void storeBf16(uint16_t* p, F32 x) {
  for (int i = 0; i < Lanes; i++) p[i] = toBf16(x.v[i]);
}
// The nearest bf16, to even; a NaN stays one.
inline F32 roundedToBf16(F32 x) SELSCAN_EACH_LANE(fromBf16(toBf16(x.v[i])))
#undef SELSCAN_EACH_LANE
}  // namespace selscan::portable

#if SELSCAN_X86
SELSCAN_PUSH_TARGET_AVX2
namespace selscan::avx2 {
inline constexpr int Lanes = 8;
struct F32 {
  __m256 v;
};
inline F32 set(float x) { return {_mm256_set1_ps(x)}; }
inline __m256i firstLanes(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline F32 load(const float* p) { return {_mm256_loadu_ps(p)}; }
inline F32 load(const float* p, int n) { return {_mm256_maskload_ps(p, firstLanes(n))}; }
inline void store(float* p, F32 x) { _mm256_storeu_ps(p, x.v); }
inline void store(float* p, F32 x, int n) { _mm256_maskstore_ps(p, firstLanes(n), x.v); }
inline F32 operator+(F32 a, F32 b) { return {_mm256_add_ps(a.v, b.v)}; }
inline F32 operator-(F32 a, F32 b) { return {_mm256_sub_ps(a.v, b.v)}; }
inline F32 operator*(F32 a, F32 b) { return {_mm256_mul_ps(a.v, b.v)}; }
inline F32 operator/(F32 a, F32 b) { return {_mm256_div_ps(a.v, b.v)}; }
inline F32 fma(F32 a, F32 b, F32 c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
inline F32 min(F32 a, F32 b) { return {_mm256_min_ps(a.v, b.v)}; }
inline F32 max(F32 a, F32 b) { return {_mm256_max_ps(a.v, b.v)}; }
inline F32 sqrt(F32 a) { return {_mm256_sqrt_ps(a.v)}; }
inline F32 abs(F32 a) { return {_mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v)}; }
inline F32 round(F32 a) { return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
inline F32 selectGreater(F32 a, F32 b, F32 x, F32 y) {
  return {_mm256_blendv_ps(y.v, x.v, _mm256_cmp_ps(a.v, b.v, _CMP_GT_OQ))};
}
inline F32 scale2(F32 x, F32 n) {
  const __m256i quarter = _mm256_castps_si256(_mm256_mul_ps(x.v, _mm256_set1_ps(0.25f)));
  const __m256i bits = _mm256_add_epi32(quarter, _mm256_slli_epi32(_mm256_cvtps_epi32(n.v), 23));  // NaN adds 2^31·2^23 = 0
  const __m256 tiny = _mm256_cmp_ps(n.v, _mm256_set1_ps(-123.0f), _CMP_LE_OQ);
  return {_mm256_andnot_ps(tiny, _mm256_mul_ps(_mm256_castsi256_ps(bits), _mm256_set1_ps(4.0f)))};
}
inline F32 withinScale(F32 x, float limit) { return min(set(limit), x); }
inline void split2(F32 x, F32& m, F32& e) {
  const __m256i bits = _mm256_castps_si256(x.v);
  const __m256i exponent = _mm256_srai_epi32(_mm256_sub_epi32(bits, _mm256_set1_epi32(0x3f3504f3)), 23);
  m.v = _mm256_castsi256_ps(_mm256_sub_epi32(bits, _mm256_slli_epi32(exponent, 23)));
  e.v = _mm256_cvtepi32_ps(exponent);
}
inline float sum(F32 a) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
inline float maximum(F32 a) {
  __m128 s = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  s = _mm_max_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}
inline bool allFinite(F32 a) { return _mm256_movemask_ps(_mm256_cmp_ps(abs(a).v, _mm256_set1_ps(INFINITY), _CMP_LT_OQ)) == 0xff; }
inline F32 loadBf16(const uint16_t* p) {
  const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(wide, 16))};
}
inline F32 loadF16(const uint16_t* p) { return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))}; }
inline F32 roundedToBf16(F32 x) {
  const __m256i bits = _mm256_castps_si256(x.v), high = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256 any = _mm256_blendv_ps(_mm256_castsi256_ps(rounded), _mm256_castsi256_ps(quiet), _mm256_cmp_ps(x.v, x.v, _CMP_UNORD_Q));
  return {_mm256_and_ps(any, _mm256_castsi256_ps(high))};
}
inline void storeBf16(uint16_t* p, F32 x) {
  const __m256i rounded = _mm256_srli_epi32(_mm256_castps_si256(roundedToBf16(x).v), 16);
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(rounded, rounded), 0x08);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
}
}  // namespace selscan::avx2
SELSCAN_POP_TARGET

SELSCAN_PUSH_TARGET_AVX512
namespace selscan::avx512 {
inline constexpr int Lanes = 16;
struct F32 {
  __m512 v;
};
inline F32 set(float x) { return {_mm512_set1_ps(x)}; }
inline __mmask16 firstLanes(int n) { return static_cast<__mmask16>(n >= 16 ? 0xffff : (1u << n) - 1u); }
inline F32 load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline F32 load(const float* p, int n) { return {_mm512_maskz_loadu_ps(firstLanes(n), p)}; }
inline void store(float* p, F32 x) { _mm512_storeu_ps(p, x.v); }
inline void store(float* p, F32 x, int n) { _mm512_mask_storeu_ps(p, firstLanes(n), x.v); }
inline F32 operator+(F32 a, F32 b) { return {_mm512_add_ps(a.v, b.v)}; }
inline F32 operator-(F32 a, F32 b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline F32 operator*(F32 a, F32 b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline F32 operator/(F32 a, F32 b) { return {_mm512_div_ps(a.v, b.v)}; }
inline F32 fma(F32 a, F32 b, F32 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline F32 min(F32 a, F32 b) { return {_mm512_min_ps(a.v, b.v)}; }
inline F32 max(F32 a, F32 b) { return {_mm512_max_ps(a.v, b.v)}; }
inline F32 sqrt(F32 a) { return {_mm512_sqrt_ps(a.v)}; }
inline F32 abs(F32 a) { return {_mm512_abs_ps(a.v)}; }
inline F32 round(F32 a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
inline F32 selectGreater(F32 a, F32 b, F32 x, F32 y) {
  return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ), y.v, x.v)};
}
// vscalefps saturates by itself, at infinite n too: it gives 0 or infinity even for a NaN x there.
inline F32 scale2(F32 x, F32 n) { return {_mm512_scalef_ps(x.v, n.v)}; }
inline F32 withinScale(F32 x, float) { return x; }
inline void split2(F32 x, F32& m, F32& e) {
  const __m512i bits = _mm512_castps_si512(x.v);
  const __m512i exponent = _mm512_srai_epi32(_mm512_sub_epi32(bits, _mm512_set1_epi32(0x3f3504f3)), 23);
  m.v = _mm512_castsi512_ps(_mm512_sub_epi32(bits, _mm512_slli_epi32(exponent, 23)));
  e.v = _mm512_cvtepi32_ps(exponent);
}
inline float sum(F32 a) {
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
inline float maximum(F32 a) {
  const __m256 half = _mm256_max_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  __m128 s = _mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  s = _mm_max_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}
inline bool allFinite(F32 a) { return _mm512_cmp_ps_mask(abs(a).v, _mm512_set1_ps(INFINITY), _CMP_LT_OQ) == 0xffff; }
inline F32 loadBf16(const uint16_t* p) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
}
inline F32 loadF16(const uint16_t* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))}; }
inline F32 roundedToBf16(F32 x) {
  const __m512i bits = _mm512_castps_si512(x.v), high = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
  const __m512i any = _mm512_mask_blend_epi32(_mm512_cmp_ps_mask(x.v, x.v, _CMP_UNORD_Q), rounded, quiet);
  return {_mm512_castsi512_ps(_mm512_and_si512(any, high))};
}
inline void storeBf16(uint16_t* p, F32 x) {
  const __m512i rounded = _mm512_srli_epi32(_mm512_castps_si512(roundedToBf16(x).v), 16);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(rounded));
}
}  // namespace selscan::avx512
SELSCAN_POP_TARGET
#endif
