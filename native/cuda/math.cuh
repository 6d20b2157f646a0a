// Scalar functions of the kernels, over the special function unit. Equations and thresholds as in native/cpu/simd_math.h.
#pragma once
#include "cuda/vec.cuh"

namespace selscan::cuda {

constexpr float Log2e = 1.4426950408889634f, Ln2 = 0.6931471805599453f;

__device__ __forceinline__ float expFast(float x) { return exp2Fast(x * Log2e); }
// 1/(1 + e^−x); the exponential overflows to ∞ far below 0, and its reciprocal is 0.
__device__ __forceinline__ float sigmoid(float x) { return reciprocalFast(1.0f + expFast(-x)); }
// No contraction with a sum that follows: the same bits in every kernel.
__device__ __forceinline__ float silu(float x) { return __fmul_rn(x, sigmoid(x)); }
// d silu(x)/dx = σ(x)·(1 + x·(1 − σ(x)))
__device__ __forceinline__ float siluGrad(float x) {
  const float s = sigmoid(x);
  return s * fmaf(x, 1.0f - s, 1.0f);
}
// log(1 + e^x), x above 20. Below e^x = 2⁻⁶ the logarithm of 1 + e^x would lose e^x's digits: the series keeps them.
__device__ __forceinline__ float softplus(float x) {
  const float e = expFast(x);
  const float series = e * fmaf(-e, fmaf(-e, fmaf(-0.25f, e, 1.0f / 3), 0.5f), 1.0f);
  const float small = e < 0.015625f ? series : log2Fast(1.0f + e) * Ln2;
  return x > 20.0f ? x : small;
}
// d softplus(x)/dx, 1 above 20
__device__ __forceinline__ float softplusGrad(float x) { return x > 20.0f ? 1.0f : sigmoid(x); }

// e^(−a²/2) and e^(a²/2)·Φ(−a), a ≥ 0: as normalTail of native/cpu/simd_math.h. The square and its product with −½·log2 e are taken
// with what their roundings leave, which the exponential then gets as a factor.
__device__ __forceinline__ void normalTail(float a, float& exponential, float& ratio) {
  constexpr float Scale = -0.7213475108146667f, ScaleRest = -9.629814955633087e-9f;  // −½·log2 e
  const float square = __fmul_rn(a, a), exponent = __fmul_rn(square, Scale);
  const float rest = fmaf(square, Scale, -exponent) + fmaf(square, ScaleRest, fmaf(a, a, -square) * Scale);
  const float whole = exp2Fast(exponent);
  exponential = fmaf(whole, rest * Ln2, whole);
  const float t = reciprocalFast(fmaf(a, 0.34f, 1.0f));
  float p = fmaf(-0.0258757583796978f, t, 0.13835376501083374f);
  p = fmaf(p, t, -0.27086424827575684f);
  p = fmaf(p, t, 0.1997099667787552f);
  p = fmaf(p, t, -4.310115799307823e-2f);
  p = fmaf(p, t, 0.11471150070428848f);
  p = fmaf(p, t, 0.11535221338272095f);
  p = fmaf(p, t, 0.1360921561717987f);
  ratio = fmaf(p, t, 0.135621577501297f) * t;
}
// x·Φ(x) = max(x, 0) − |x|·Φ(−|x|)
__device__ __forceinline__ float gelu(float x) {
  const float size = fabsf(x), a = size > 14.5f ? 14.5f : size;  // NaN stays
  float exponential, ratio;
  normalTail(a, exponential, ratio);
  return __fmaf_rn(-a, exponential * ratio, x > 0.0f ? x : 0.0f);
}
// d gelu(x)/dx = Φ(x) + x·e^(−x²/2)/√(2π)
__device__ __forceinline__ float geluGrad(float x) {
  const float size = fabsf(x), a = size > 14.5f ? 14.5f : size;
  float exponential, ratio;
  normalTail(a, exponential, ratio);
  const float below = exponential * fmaf(a, -0.3989422804014327f, ratio);
  return x > 0.0f ? 1.0f - below : below;
}

// sine and cosine of |x| ≤ π/4
__device__ __forceinline__ void sinCos(float x, float& sine, float& cosine) {
  const float square = x * x;
  const float p = fmaf(fmaf(-1.9495636020311086e-4f, square, 8.331978660858856e-3f), square, -0.16666650669234734f);
  sine = fmaf(x * square, p, x);
  const float q = fmaf(fmaf(2.443845081484086e-5f, square, -1.3887367507832576e-3f), square, 4.1666646866247756e-2f);
  cosine = fmaf(square * square, q, fmaf(-0.5f, square, 1.0f));
}

}  // namespace selscan::cuda
