// Operands of products as bf16 planes, the one form that tensor cores read.
//
//   precision bf16:  x ≈ p₀                 p₀ = x rounded to bf16
//   precision f32:   x = p₀ + p₁ + p₂       p₀ = x rounded, p₁ = what is left rounded, p₂ = the rest: 3 · 8 bits of x's 24
//
// Rounding to nearest leaves |x − p₀| ≤ 2⁻⁸·|x|, at most 16 bits, and after p₁ at most 2⁻¹⁶·|x|, 8 bits: the sum is exact (for
// |x| from 2⁻¹¹⁰; below, p₂ ends at bf16's smallest number). Rows are padded with zeros to a multiple of 8 elements, so that each
// begins on 16 bytes.
#pragma once
#include "cuda/launch.cuh"
#include "ops/linear.h"

namespace selscan::cuda {

// Planes of a matrix: element (row, column) of plane i is data[i·planeStride + row·stride + column].
struct Planes {
  const bf16* data;
  int64_t stride, planeStride;

  Planes fromRow(int64_t row) const { return {data + row * stride, stride, planeStride}; }
};

inline int planeCountOf(const Call& call) { return ops::precisionOf(call.attributes) == ops::Precision::bf16 ? 1 : 3; }
__host__ __device__ constexpr int64_t paddedWidth(int64_t columns) { return (columns + 7) / 8 * 8; }
constexpr size_t planeBytes(int64_t planes, int64_t rows, int64_t columns) {
  return static_cast<size_t>(planes * rows * paddedWidth(columns)) * sizeof(bf16);
}

// For .prepare: how input `index` of a product becomes planes; null where it is one as it lies.
const Preparation* planesFor(const Call&, int index);
// The planes of that input when the kernel runs.
Planes planesOf(const Call&, int index);

// Of a number that only rounding makes infinite, p₀ is the largest finite one where planes follow to make up for it; what is
// infinite or NaN is p₀ alone.
template <int Count>
__device__ __forceinline__ void split(float x, bf16 (&planes)[Count]) {
  planes[0] = fromFloat<bf16>(x);
  if constexpr (Count > 1) {
    constexpr float Infinity = __builtin_huge_valf();
    const bool finite = fabsf(x) < Infinity;
    if (finite && fabsf(toFloat(planes[0])) == Infinity)
      planes[0] = fromFloat<bf16>(__uint_as_float(__float_as_uint(x) & 0xffff0000u));
    float rest = finite ? x - toFloat(planes[0]) : 0.0f;
#pragma unroll
    for (int i = 1; i < Count; i++) {
      planes[i] = fromFloat<bf16>(rest);
      rest -= toFloat(planes[i]);
    }
  }
}

}  // namespace selscan::cuda
