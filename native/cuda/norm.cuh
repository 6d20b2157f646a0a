// What rmsNorm and layerNorm share, forward and backward: how a row lies in a block, and sums over it. See lib/ops/norm.ts for the
// equations.
//
// A row is one block's, of as many warps as dim asks for: its elements stay in registers between the sums and the result, 16 a
// thread (8 in the gradient), loaded as vectors of 4; what is beyond the registers of 512 threads (a dim above 8192, 4096 in the
// gradient; half of that where dim is no multiple of 4) is read again. Sums over a row are cut by dim alone.
#pragma once
#include <algorithm>

#include "cuda/block.cuh"
#include "cuda/launch.cuh"
#include "ops/norm.h"

namespace selscan::cuda::norm {

constexpr int ThreadsMost = 512, Vector = 4;
template <int N>
constexpr int ForwardElements = N == 1 ? 8 : 16;  // of a thread, in vectors of N
template <int N>
constexpr int BackwardElements = N == 1 ? 4 : 8;
constexpr int SumsMost = 3;
constexpr size_t ScratchBytes = SumsMost * WarpMax * sizeof(float);

// Sums of Count values over the block, for every thread, by the order of overBlock.
template <int Count>
__device__ __forceinline__ void sumOverBlock(float (&value)[Count], float* scratch) {
#pragma unroll
  for (int i = 0; i < Count; i++) {
    value[i] = overWarp(Sum{}, value[i]);
    if (laneIndex() == 0) scratch[i * WarpMax + warpIndex()] = value[i];
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < Count; i++)
    value[i] = overWarp(Sum{}, laneIndex() < static_cast<int>(blockDim.x / 32) ? scratch[i * WarpMax + laneIndex()] : 0.0f);
  __syncthreads();
}

// The first element that the thread holds in its i-th vector of N.
template <int N>
__device__ __forceinline__ int elementAt(int i) {
  return static_cast<int>(i * blockDim.x + threadIdx.x) * N;
}

// What a row is centred and scaled by: (x − mean − rest)·scale, mean and rest 0 in rmsNorm.
struct Level {
  float mean = 0.0f, rest = 0.0f, scale = 0.0f;
  template <bool Centred>
  __device__ __forceinline__ float apply(float x) const {
    return Centred ? (x - mean - rest) * scale : x * scale;
  }
};

inline unsigned threadsFor(int64_t dim, int64_t elements) {
  return static_cast<unsigned>(std::min<int64_t>(ThreadsMost, ceilDiv(dim, elements * 32) * 32));
}

// N elements of the weight; of none, ones.
template <int N>
__device__ __forceinline__ void loadGain(const float* weight, int at, float (&to)[N]) {
#pragma unroll
  for (int k = 0; k < N; k++) to[k] = 1.0f;
  if (weight) loadVec<N>(weight + at, to);
}

}  // namespace selscan::cuda::norm
