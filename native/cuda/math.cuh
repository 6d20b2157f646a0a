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

}  // namespace selscan::cuda
