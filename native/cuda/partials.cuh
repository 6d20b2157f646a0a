// Adds up lines of partial sums: the second step of every gradient that is a sum over rows.
#pragma once
#include "cuda/block.cuh"
#include "cuda/launch.cuh"

namespace selscan::cuda {

constexpr unsigned LineThreads = 512;

// put(column, Σ of the column over all lines): warp w adds lines w, w + 16, … in f64, then the warps' sums are added in rising
// order. A block has 32 columns.
// registers: 64
template <class Put>
__global__ __launch_bounds__(LineThreads) void addLines(const float* partial, int64_t lines, int64_t columns, Put put) {
  constexpr int Warps = LineThreads / 32;
  SHARED(double, sums);  // (Warps, 32)
  const int64_t column = int64_t{blockIdx.x} * 32 + laneIndex();
  double sum = 0;
  if (column < columns) {
#pragma unroll 8
    for (int64_t line = warpIndex(); line < lines; line += Warps) sum += partial[line * columns + column];
  }
  sums[threadIdx.x] = sum;
  __syncthreads();
  if (warpIndex() != 0 || column >= columns) return;
  double all = 0;
#pragma unroll
  for (int warp = 0; warp < Warps; warp++) all += sums[warp * 32 + laneIndex()];
  put(column, static_cast<float>(all));
}

template <class Put>
void launchLines(CudaDevice& device, const float* partial, int64_t lines, int64_t columns, Put put) {
  const Grid grid{static_cast<unsigned>(ceilDiv(columns, 32)), LineThreads, LineThreads * sizeof(double)};
  launch(device, grid, addLines<Put>, partial, lines, columns, put);
}

}  // namespace selscan::cuda
