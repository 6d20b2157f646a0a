// What the forward and the backward causal convolution share on the device: how rows and channels are cut into warps, and the inputs
// before a row.
#pragma once
#include <algorithm>
#include <cstdint>

#include "cuda/launch.cuh"
#include "cuda/segments.cuh"

namespace selscan::cuda {

constexpr unsigned ConvThreads = 128;

// A warp has 32·N neighbouring channels of one run of rows; lane l the N channels from l·N on.
struct Runs {
  int64_t rows, inner, pieces, warps;
  int runRows;
  int64_t count() const { return ceilDiv(rows, runRows); }
  Grid grid() const { return {static_cast<unsigned>(ceilDiv(warps, ConvThreads / 32)), ConvThreads}; }
};

// Runs are as long as they can be (each reads a few rows of its neighbour and its taps anew) while there are WarpsEnough of
// them. The cut depends on the shape alone.
inline Runs cutRows(int64_t rows, int64_t inner, int channelsPerLane, int shortest, int longest) {
  constexpr int64_t WarpsEnough = 4096;  // a multiprocessor holds some 20 of these: 1.5 times what 132 of them hold
  Runs runs{rows, inner, ceilDiv(inner, 32 * channelsPerLane), 0, shortest};
  while (runs.runRows < longest && ceilDiv(rows, 2 * runs.runRows) * runs.pieces >= WarpsEnough) runs.runRows *= 2;
  runs.warps = runs.count() * runs.pieces;
  return runs;
}

// N floats as vectors of 4 where N allows; the address is then a multiple of 16.
template <int N>
__device__ __forceinline__ void loadFloats(const float* from, float (&to)[N]) {
  constexpr int Width = N % 4 == 0 ? 4 : 1;
#pragma unroll
  for (int i = 0; i < N; i += Width) {
    const Vec<float, Width> v = *reinterpret_cast<const Vec<float, Width>*>(from + i);
#pragma unroll
    for (int k = 0; k < Width; k++) to[i + k] = v.at[k];
  }
}
template <int N>
__device__ __forceinline__ void storeFloats(float* to, const float (&from)[N]) {
  constexpr int Width = N % 4 == 0 ? 4 : 1;
#pragma unroll
  for (int i = 0; i < N; i += Width) {
    Vec<float, Width> v;
#pragma unroll
    for (int k = 0; k < Width; k++) v.at[k] = from[i + k];
    *reinterpret_cast<Vec<float, Width>*>(to + i) = v;
  }
}

// before[i·Tail + j]: input j of the Tail before row `row` of a segment that begins at `begin`, for N channels. `x` and `tail`
// point at the first of these channels, of all rows and of the segment's own tail (null: zeros).
template <int N, int Tail, class T>
__device__ __forceinline__ void loadBefore(const T* x, int64_t inner, const float* tail, int64_t begin, int64_t row,
                                           float (&before)[N * Tail]) {
  if (row == begin) {
    if (tail) return loadFloats<N * Tail>(tail, before);
#pragma unroll
    for (int i = 0; i < N * Tail; i++) before[i] = 0.0f;
    return;
  }
#pragma unroll
  for (int j = 0; j < Tail; j++) {
    const int64_t at = row - Tail + j;
    float value[N];
    if (at >= begin) {
      loadVec<N>(x + at * inner, value);
    } else {
#pragma unroll
      for (int i = 0; i < N; i++) value[i] = tail ? tail[i * Tail + (at - begin + Tail)] : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < N; i++) before[i * Tail + j] = value[i];
  }
}

}  // namespace selscan::cuda
