// Sums and maxima over a warp and over a block, in an order that the block's size alone decides.
#pragma once
#include "cuda/ptx.cuh"

namespace selscan::cuda {

constexpr int WarpMax = 32;  // warps in the largest block

__device__ __forceinline__ int laneIndex() { return static_cast<int>(threadIdx.x % 32); }
__device__ __forceinline__ int warpIndex() { return static_cast<int>(threadIdx.x / 32); }

struct Sum {
  template <class T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return a + b;
  }
};
struct Maximum {
  template <class T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return a > b ? a : b;
  }
};

// Of all lanes, for every lane: a butterfly, whose two sides add the same pairs.
template <class Operation, class T>
__device__ __forceinline__ T overWarp(Operation operation, T value) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) value = operation(value, __shfl_xor_sync(~0u, value, distance));
  return value;
}

// Of all threads, for every thread. `nothing` is what leaves the other operand as it is; scratch holds WarpMax values and is
// free again on return.
template <class Operation, class T>
__device__ __forceinline__ T overBlock(Operation operation, T value, T nothing, T* scratch) {
  value = overWarp(operation, value);
  if (laneIndex() == 0) scratch[warpIndex()] = value;
  __syncthreads();
  value = overWarp(operation, laneIndex() < static_cast<int>(blockDim.x / 32) ? scratch[laneIndex()] : nothing);
  __syncthreads();
  return value;
}

}  // namespace selscan::cuda
