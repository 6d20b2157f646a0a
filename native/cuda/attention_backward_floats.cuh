// The gradient of attention in precision f32: the loop of cuda/attention_backward.cuh over the tiles of cuda/attention_floats.cuh.
// A warp owns 8 lines, and of a step of 32 a lane has one.
#pragma once
#include "cuda/attention_backward.cuh"
#include "cuda/attention_floats.cuh"

namespace selscan::cuda::attention {

// At 256 columns two matrices of a step leave shared memory for the lines of one warp.
template <int Width>
using FloatGradTile = FloatTile<Width, Width == 256 ? 1 : 4>;

template <class T>
struct FloatGradShared {
  float *own[2], *stream[2], *weights;  // weights: of the warp
  __device__ __forceinline__ explicit FloatGradShared(float* shared)
      : own{shared, shared + T::RowElements},
        stream{shared + 2 * T::RowElements, shared + 2 * T::RowElements + T::LineElements},
        weights(shared + 2 * (T::RowElements + T::LineElements) + warpIndex() * FloatRows * Step) {}
};

// One step. `log` and D are those of this lane's line of the step, or where queries are own rows, of the warp's row lane mod 8.
template <class T, bool OfKeys>
__device__ __forceinline__ void addFloatStep(float (&sums)[OfKeys ? 2 : 1][FloatRows][T::Columns], const FloatGradShared<T>& shared,
                                             int line, int at, float scale, const Range& seen, float log, float D) {
  float p[FloatRows], ds[FloatRows];
  multiplyRows<T>(p, shared.own[0] + line * T::Width, shared.stream[0]);
  multiplyRows<T>(ds, shared.own[1] + line * T::Width, shared.stream[1]);
#pragma unroll
  for (int r = 0; r < FloatRows; r++) {
    const bool sees = seesLane(seen, r, at);
    const float ofLog = OfKeys ? log : __shfl_sync(~0u, log, r), ofD = OfKeys ? D : __shfl_sync(~0u, D, r);
    const float weight = exp2Fast(fmaf(p[r], scale, -ofLog));
    p[r] = sees ? weight : 0.0f;
    ds[r] = sees ? __fmul_rn(weight, ds[r] - ofD) : 0.0f;
  }
  addWeighted<T>(sums[0], ds, shared.weights, shared.stream[0]);
  if constexpr (OfKeys) addWeighted<T>(sums[1], p, shared.weights, shared.stream[1]);
}
template <class T>
__device__ __forceinline__ void storeFloatSums(const Gradient& gradient, const float (&sums)[T::Columns], int64_t at, float factor) {
#pragma unroll
  for (int i = 0; i < T::Columns; i++)
    if (const int column = T::column(i); column < gradient.g.headDim) gradient.dqkv.store<1>(at + column, {sums[i] * factor});
}
template <class T, int Count>
__device__ __forceinline__ void clearFloatSums(float (&sums)[Count][FloatRows][T::Columns]) {
#pragma unroll
  for (auto& half : sums)
#pragma unroll
    for (auto& row : half)
#pragma unroll
      for (float& sum : row) sum = 0.0f;
}

// registers: 128 of <32, 4>, 144 of <64, 4>, 168 of <128, 4>, 168 of <256, 1>
template <class T>
__global__ __launch_bounds__(T::Threads, 1) void gradQueriesFloat(const __grid_constant__ Gradient gradient) {
  SHARED(float, memory);
  const FloatGradShared<T> shared(memory);
  const Geometry& g = gradient.g;
  const Work work = workOf<T::Rows>(g, blockIdx.x);
  if (work.tiles == 0) return;
  const Sequence& sequence = work.place.sequence;
  const Range packed{work.place.first, work.place.first + work.place.count};
  stageQueryFloats<T, T::Rows>(shared.own[0], T::Width, g, sequence, work.kvHead, packed, gradient.qkv, g.packed(), gradient.vectors);
  stageQueryFloats<T, T::Rows>(shared.own[1], T::Width, g, sequence, work.kvHead, packed, gradient.dy, g.width(), gradient.vectors);
  const int line = warpIndex() * FloatRows, own = line + laneIndex() % FloatRows;
  const Range seen = work.keysOf(g, own);
  const int64_t statistics = own < work.place.count ? statisticsAt(g, sequence, work.kvHead, work.place.first + own) : 0;
  const float log = gradient.logOf(statistics), D = gradient.D[statistics];
  float sums[1][FloatRows][T::Columns];
  clearFloatSums<T>(sums);
#pragma unroll 1
  for (int at = 0; at < work.tiles * KeyTile; at += Step) {
    __syncthreads();  // nobody reads the step before
    const auto stage = [&](float* to, const std::byte* ring, int64_t column) {
      stageKeyFloats<T>(to, g, keyLines(g, work, at, g.packed(), column), gradient.qkv, reinterpret_cast<const float*>(ring),
                        gradient.vectors);
    };
    stage(shared.stream[0], gradient.keys, g.keyColumn(work.kvHead));
    stage(shared.stream[1], gradient.values, g.valueColumn(work.kvHead));
    __syncthreads();
    addFloatStep<T, false>(sums, shared, line, at, g.scale * Log2e, seen, log, D);
  }
#pragma unroll
  for (int r = 0; r < FloatRows; r++)
    if (const int i = line + r; i < work.place.count)
      storeFloatSums<T>(gradient, sums[0][r], work.row(g, i) * g.packed() + int64_t{work.head(g, i)} * g.headDim, g.scale);
}

// registers: 136 of <32, 4>, 160 of <64, 4>, 192 of <128, 4>, 255 of <256, 1>
template <class T>
__global__ __launch_bounds__(T::Threads, 1) void gradKeysFloat(const __grid_constant__ Gradient gradient) {
  SHARED(float, memory);
  const FloatGradShared<T> shared(memory);
  const Geometry& g = gradient.g;
  const KeyWork work = keyWorkOf<T::Rows>(g, blockIdx.x, 1);
  if (work.place.count == 0) return;
  const Sequence& sequence = work.place.sequence;
  const auto stageOwn = [&](float* to, int64_t first) {
    const auto load = [&]<int N>(int line, int column, float (&four)[N]) {
      if (line < work.place.count) gradient.qkv.load<N>(work.row(line) * g.packed() + first + column, four);
    };
    stageFloats<T::Width, T::Rows, T::Threads>(to, T::Width, g.headDim, gradient.vectors, load);
  };
  stageOwn(shared.own[0], g.keyColumn(work.kvHead));
  stageOwn(shared.own[1], g.valueColumn(work.kvHead));
  const int line = warpIndex() * FloatRows;
  const Range seen = work.queriesOf(g, line + laneIndex() % FloatRows);
  float sums[2][FloatRows][T::Columns];
  clearFloatSums<T>(sums);
#pragma unroll 1
  for (int at = 0; at < work.stream.end - work.stream.first; at += Step) {
    __syncthreads();  // nobody reads the step before
    const Range packed{work.stream.first + at, work.stream.end};
    stageQueryFloats<T, Step>(shared.stream[0], T::LineStride, g, sequence, work.kvHead, packed, gradient.qkv, g.packed(),
                              gradient.vectors);
    stageQueryFloats<T, Step>(shared.stream[1], T::LineStride, g, sequence, work.kvHead, packed, gradient.dy, g.width(),
                              gradient.vectors);
    const int query = min(packed.first + laneIndex(), packed.end - 1);
    const int64_t statistics = statisticsAt(g, sequence, work.kvHead, query);
    const float log = gradient.logOf(statistics), D = gradient.D[statistics];
    __syncthreads();
    addFloatStep<T, true>(sums, shared, line, at, g.scale * Log2e, seen, log, D);
  }
#pragma unroll
  for (int r = 0; r < FloatRows; r++) {
    if (line + r >= work.place.count) continue;
    const int64_t row = work.row(line + r) * g.packed();
    storeFloatSums<T>(gradient, sums[0][r], row + g.keyColumn(work.kvHead), g.scale);
    storeFloatSums<T>(gradient, sums[1][r], row + g.valueColumn(work.kvHead), 1.0f);
  }
}

}  // namespace selscan::cuda::attention
