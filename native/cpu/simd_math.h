// Elementary functions over F32, compiled once for each instruction set (cpu/each_isa.h includes this file inside every
// target region; it has no guard of its own).
namespace selscan::ISA {

// 2^x. x = n + r with n whole and |r| ≤ ½; 2^r by a polynomial of degree 5 (minimax, relative error 1.05e-7; 1.8e-7 with
// rounding) whose constant term is exactly 1 and whose linear term is ln 2 rounded: results for x ≤ 0 never exceed 1, and
// 1 − 2^x keeps all the precision that f32 has near 1, where long memory lives. Results under 2^−123 may be 0.
inline F32 exp2(F32 x) {
  x = withinScale(x, 129.0f);
  const F32 n = round(x), r = x - n;
  F32 p = fma(set(1.3300355058163404e-3f), r, set(9.669660590589046e-3f));
  p = fma(p, r, set(5.550558865070343e-2f));
  p = fma(p, r, set(0.24022282660007477f));
  p = fma(p, r, set(0.6931471824645996f));
  return scale2(fma(p, r, set(1.0f)), n);
}

// e^x = 2^n·e^r with n whole and |r| ≤ ½ ln 2; e^r by a polynomial of degree 6 (minimax, relative error 3e-9; 1.0e-7 with
// rounding). ln 2 stands in two parts, of which n·(first part) is exact, so that large |x| loses nothing. Results under
// 2^−123 may be 0.
inline F32 exp(F32 x) {
  x = max(set(-128.0f), min(set(89.5f), x));  // far out, rounding would leave r anything but small
  const F32 n = round(x * set(1.4426950408889634f));
  const F32 r = fma(n, set(2.12194440e-4f), fma(n, set(-0.693359375f), x));
  F32 p = fma(set(1.3820735039189458e-3f), r, set(8.368677459657192e-3f));
  p = fma(p, r, set(4.166826605796814e-2f));
  p = fma(p, r, set(0.1666652113199234f));
  p = fma(p, r, set(0.4999999403953552f));
  p = fma(p, r, set(1.0f));
  return scale2(fma(p, r, set(1.0f)), n);
}

// Natural logarithm of normal, finite x > 0. x = m·2^e, m in [√½, √2); log m = f − f²/2 + f³·P(f), f = m − 1 (P: degree 7,
// minimax, relative error 6e-9).
inline F32 logNormal(F32 x) {
  F32 m, e;
  split2(x, m, e);
  const F32 f = m - set(1.0f), square = f * f;
  F32 p = fma(set(-7.636439055204391e-2f), f, set(0.12762217223644257f));
  p = fma(p, f, set(-0.13159610331058502f));
  p = fma(p, f, set(0.14201579988002777f));
  p = fma(p, f, set(-0.166234090924263f));
  p = fma(p, f, set(0.2000124156475067f));
  p = fma(p, f, set(-0.2500081956386566f));
  p = fma(p, f, set(0.3333333134651184f));
  const F32 tail = fma(p * f, square, fma(e, set(-2.12194440e-4f), set(-0.5f) * square));
  return fma(e, set(0.693359375f), f + tail);
}

// Natural logarithm of any x: −∞ at 0, NaN below, ∞ at ∞.
inline F32 log(F32 x) {
  const F32 least = set(1.17549435e-38f);  // below it f32 is subnormal: scaled up by 2^25 first
  const F32 scaled = selectGreater(least, x, x * set(33554432.0f), x);
  const F32 y = logNormal(scaled) - selectGreater(least, x, set(17.3286795139986f), set(0.0f));
  const F32 finite = selectGreater(x, set(3.402823466e38f), x, y);
  const F32 zero = set(0.0f);
  return selectGreater(x, zero, finite, set(-1.0f) / sqrt(x + zero));
}

// log(1 + t) of t in [0, 1]: t + t²·Q(t) (Q: degree 8, minimax, relative error 5e-9; 1.1e-7 with rounding). No quotient.
inline F32 log1p(F32 t) {
  F32 q = fma(set(-3.3074074890464544e-3f), t, set(2.0154505968093872e-2f));
  q = fma(q, t, set(-5.756990611553192e-2f));
  q = fma(q, t, set(0.10670919716358185f));
  q = fma(q, t, set(-0.153496652841568f));
  q = fma(q, t, set(0.19693396985530853f));
  q = fma(q, t, set(-0.2495819479227066f));
  q = fma(q, t, set(0.3333047330379486f));
  q = fma(q, t, set(-0.4999993145465851f));
  return fma(t, q * t, t);
}

// softplus(x) = log(1 + e^x) = max(x, 0) + log(1 + e^−|x|), which is x itself above 20 as in torch: e^−20 is lost beside it.
inline F32 softplus(F32 x) {
  const F32 zero = set(0.0f);
  return max(zero, x) + log1p(exp(zero - abs(x)));
}

// The same, and its derivative σ(x) from the same exponential; σ(x) is 1 above 20, as in torch.
inline F32 softplus(F32 x, F32& slope) {
  const F32 zero = set(0.0f), one = set(1.0f), t = exp(zero - abs(x));
  slope = selectGreater(x, zero, one, t) / (one + t);
  return max(zero, x) + log1p(t);
}

// σ(x) = 1/(1 + e^−x). Where e^−x is infinite the quotient is 0, as it should be.
inline F32 sigmoid(F32 x) { return set(1.0f) / (set(1.0f) + exp(set(0.0f) - x)); }

inline F32 silu(F32 x) { return x * sigmoid(x); }
// d silu/dx = σ(x)·(1 + x·(1 − σ(x)))
inline F32 siluGrad(F32 x) {
  const F32 s = sigmoid(x);
  return s * fma(x, set(1.0f) - s, set(1.0f));
}

// e^(−a²/2), and R(a) = e^(a²/2)·Φ(−a), so that their product is the normal distribution's tail Φ(−a) to f32 accuracy however
// small it is; a ≥ 0. R falls from ½ like 1/(a·√2π): a polynomial of degree 9 in 1/(1 + 0.34·a), relative error 3.4e-8 up to 14.5,
// above which the exponential is 0. The square is taken apart: of a = h + rest, h whole sixteenths, h² is exact and
// a² = h² + rest·(a + h) has its error in the small term, where a rounded a² would lose 2⁻²⁴·a² of the result.
inline void normalTail(F32 a, F32& exponential, F32& ratio) {
  const F32 h = round(a * set(16.0f)) * set(0.0625f);
  exponential = exp(set(-0.5f) * (h * h)) * exp(set(-0.5f) * ((a - h) * (a + h)));
  const F32 t = set(1.0f) / fma(a, set(0.34f), set(1.0f));
  F32 p = fma(set(-0.0258757583796978f), t, set(0.13835376501083374f));
  p = fma(p, t, set(-0.27086424827575684f));
  p = fma(p, t, set(0.1997099667787552f));
  p = fma(p, t, set(-4.310115799307823e-2f));
  p = fma(p, t, set(0.11471150070428848f));
  p = fma(p, t, set(0.11535221338272095f));
  p = fma(p, t, set(0.1360921561717987f));
  ratio = fma(p, t, set(0.135621577501297f)) * t;
}

// x·Φ(x). With a = |x| it is max(x, 0) − a·Φ(−a): below 0 a product of accurate factors, above it a difference far from cancelling.
// Results under 2^−120 may be 0.
inline F32 gelu(F32 x) {
  const F32 a = min(set(14.5f), abs(x));
  F32 exponential, ratio;
  normalTail(a, exponential, ratio);
  return selectGreater(x, set(0.0f), x, set(0.0f)) - a * (exponential * ratio);
}
// d gelu/dx = Φ(x) + x·φ(x): e^(−a²/2)·(R(a) − a/√2π) below 0, 1 less that above.
inline F32 geluGrad(F32 x) {
  const F32 a = min(set(14.5f), abs(x));
  F32 exponential, ratio;
  normalTail(a, exponential, ratio);
  const F32 below = exponential * fma(a, set(-0.3989422804014327f), ratio);
  return selectGreater(x, set(0.0f), set(1.0f) - below, below);
}

// sine and cosine of |x| ≤ π/4: x + x³·P(x²) and 1 − x²/2 + x⁴·Q(x²), minimax, errors 1.8e-9 and 9.5e-11 before rounding.
inline void sinCos(F32 x, F32& sine, F32& cosine) {
  const F32 square = x * x;
  F32 p = fma(set(-1.9495636020311086e-4f), square, set(8.331978660858856e-3f));
  p = fma(p, square, set(-0.16666650669234734f));
  sine = fma(x * square, p, x);
  F32 q = fma(set(2.443845081484086e-5f), square, set(-1.3887367507832576e-3f));
  q = fma(q, square, set(4.1666646866247756e-2f));
  cosine = fma(square * square, q, fma(set(-0.5f), square, set(1.0f)));
}

// Σ a[i] in one fixed order, whatever n: full vectors lane by lane, then the lanes.
inline float sum(const float* a, int64_t n) {
  F32 total = set(0.0f);
  int64_t i = 0;
  for (; i + Lanes <= n; i += Lanes) total = total + load(a + i);
  if (i < n) total = total + load(a + i, static_cast<int>(n - i));
  return sum(total);
}

// Every lane as two bf16, widened: the one in the low half of its bits, and the one in the high half; and such a lane from two.
#if defined(SELSCAN_AVX512)
inline F32 lowHalf(F32 x) { return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(x.v), 16))}; }
inline F32 highHalf(F32 x) {
  return {_mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(x.v), _mm512_set1_epi32(static_cast<int>(0xffff0000u))))};
}
inline F32 together(F32 low, F32 high) {
  return {_mm512_castsi512_ps(_mm512_or_si512(_mm512_srli_epi32(_mm512_castps_si512(low.v), 16), _mm512_castps_si512(high.v)))};
}
#elif defined(SELSCAN_AVX2)
inline F32 lowHalf(F32 x) { return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(x.v), 16))}; }
inline F32 highHalf(F32 x) {
  return {_mm256_castsi256_ps(_mm256_and_si256(_mm256_castps_si256(x.v), _mm256_set1_epi32(static_cast<int>(0xffff0000u))))};
}
inline F32 together(F32 low, F32 high) {
  return {_mm256_castsi256_ps(_mm256_or_si256(_mm256_srli_epi32(_mm256_castps_si256(low.v), 16), _mm256_castps_si256(high.v)))};
}
#else
inline F32 changeBits(F32 x, uint32_t mask, int shift) {
  for (float& lane : x.v) {
    uint32_t bits;
    std::memcpy(&bits, &lane, 4);
    bits = (bits & mask) << shift;
    std::memcpy(&lane, &bits, 4);
  }
  return x;
}
inline F32 lowHalf(F32 x) { return changeBits(x, 0xffffu, 16); }
inline F32 highHalf(F32 x) { return changeBits(x, 0xffff0000u, 0); }
inline F32 together(F32 low, F32 high) {
  for (int i = 0; i < Lanes; i++) {
    uint32_t bits[2];
    std::memcpy(&bits[0], &low.v[i], 4);
    std::memcpy(&bits[1], &high.v[i], 4);
    bits[1] |= bits[0] >> 16;
    std::memcpy(&high.v[i], &bits[1], 4);
  }
  return high;
}
#endif

// v[i][k] becomes v[k][i].
#if defined(SELSCAN_AVX512)
inline void transpose(F32 (&v)[Lanes]) {
  __m512 quads[4][4];  // [rows 4g … 4g + 3][k]: in quarter q of the register, column 4q + k of those rows
#pragma GCC unroll 4
  for (int g = 0; g < 4; g++) {
    const __m512 a = _mm512_unpacklo_ps(v[4 * g].v, v[4 * g + 1].v), b = _mm512_unpackhi_ps(v[4 * g].v, v[4 * g + 1].v);
    const __m512 c = _mm512_unpacklo_ps(v[4 * g + 2].v, v[4 * g + 3].v), d = _mm512_unpackhi_ps(v[4 * g + 2].v, v[4 * g + 3].v);
    quads[g][0] = _mm512_shuffle_ps(a, c, 0x44);
    quads[g][1] = _mm512_shuffle_ps(a, c, 0xee);
    quads[g][2] = _mm512_shuffle_ps(b, d, 0x44);
    quads[g][3] = _mm512_shuffle_ps(b, d, 0xee);
  }
#pragma GCC unroll 4
  for (int k = 0; k < 4; k++) {
    const __m512 even = _mm512_shuffle_f32x4(quads[0][k], quads[1][k], 0x88), odd = _mm512_shuffle_f32x4(quads[0][k], quads[1][k], 0xdd);
    const __m512 evenHigh = _mm512_shuffle_f32x4(quads[2][k], quads[3][k], 0x88);
    const __m512 oddHigh = _mm512_shuffle_f32x4(quads[2][k], quads[3][k], 0xdd);
    v[k].v = _mm512_shuffle_f32x4(even, evenHigh, 0x88);
    v[4 + k].v = _mm512_shuffle_f32x4(odd, oddHigh, 0x88);
    v[8 + k].v = _mm512_shuffle_f32x4(even, evenHigh, 0xdd);
    v[12 + k].v = _mm512_shuffle_f32x4(odd, oddHigh, 0xdd);
  }
}
#elif defined(SELSCAN_AVX2)
inline void transpose(F32 (&v)[Lanes]) {
  __m256 quads[2][4];  // [rows 4g … 4g + 3][k]: in half q of the register, column 4q + k of those rows
#pragma GCC unroll 2
  for (int g = 0; g < 2; g++) {
    const __m256 a = _mm256_unpacklo_ps(v[4 * g].v, v[4 * g + 1].v), b = _mm256_unpackhi_ps(v[4 * g].v, v[4 * g + 1].v);
    const __m256 c = _mm256_unpacklo_ps(v[4 * g + 2].v, v[4 * g + 3].v), d = _mm256_unpackhi_ps(v[4 * g + 2].v, v[4 * g + 3].v);
    quads[g][0] = _mm256_shuffle_ps(a, c, 0x44);
    quads[g][1] = _mm256_shuffle_ps(a, c, 0xee);
    quads[g][2] = _mm256_shuffle_ps(b, d, 0x44);
    quads[g][3] = _mm256_shuffle_ps(b, d, 0xee);
  }
#pragma GCC unroll 4
  for (int k = 0; k < 4; k++) {
    v[k].v = _mm256_permute2f128_ps(quads[0][k], quads[1][k], 0x20);
    v[4 + k].v = _mm256_permute2f128_ps(quads[0][k], quads[1][k], 0x31);
  }
}
#else
inline void transpose(F32 (&v)[Lanes]) {
  for (int i = 0; i < Lanes; i++)
    for (int k = 0; k < i; k++) {
      const float above = v[k].v[i];
      v[k].v[i] = v[i].v[k];
      v[i].v[k] = above;
    }
}
#endif

}  // namespace selscan::ISA
