// Attention in precision f32: tiles of floats in shared memory, and forward attention over them by fused multiply-adds.
//
// A warp has 8 packed rows. For scores a lane is one key of a step of 32; for sums over keys it has every 32nd vector of columns,
// and the weights pass through shared memory. Queries and weights are read by all lanes at once, keys in vectors of 16 bytes
// from lines that are 4 floats longer than a multiple of 32: without bank conflicts.
//
// 4 columns of the scores of 32 keys × 8 rows take a warp 32 fused multiply-adds and 12 wavefronts of shared memory (4 for the
// keys, 8 broadcasts). A multiprocessor of sm_90 does 4 of the former in a clock and 1 of the latter: shared memory bounds it, at
// two thirds of the rate of multiply-adds. One of sm_80 does 2 of the former: multiply-adds bound it. This is the path of
// exactness, not of speed. Not measured on a GPU yet.
#pragma once
#include "cuda/attention.cuh"

namespace selscan::cuda::attention {

constexpr int FloatRows = 8;  // of a warp
constexpr int Step = 32;      // keys, or in a gradient packed rows: one per lane
static_assert(KeyTile % Step == 0);

// Shared memory of a block, in floats.
template <int Width_, int Warps_>
struct FloatTile {
  static constexpr int Width = Width_, Warps = Warps_, Threads = Warps * 32, Rows = Warps * FloatRows;
  static constexpr int LineStride = Width + 4, LineElements = Step * LineStride, RowElements = Rows * Width;
  static constexpr int WeightElements = Rows * Step;
  static constexpr int Vector = Width >= 128 ? 4 : Width / 32;  // neighbouring columns of a lane
  static constexpr int Columns = Width / 32;                    // of a lane
  static constexpr size_t ForwardBytes = (RowElements + 2 * LineElements + WeightElements) * sizeof(float);
  static constexpr size_t GradBytes = (2 * RowElements + 2 * LineElements + WeightElements) * sizeof(float);

  // The first of the neighbouring columns that lane columns i belong to.
  static __device__ __forceinline__ int column(int i) { return (i / Vector * 32 + laneIndex()) * Vector + i % Vector; }
};

// Copies Lines lines of `columns` floats into lines of `stride`, with zeros after them; load(line, column, to) reads N neighbours, or
// leaves the zeros where the line is not there. All threads of the block take part.
template <int Width, int Lines, int Threads, class Load>
__device__ __forceinline__ void stageFloats(float* tile, int stride, int columns, bool vectors, const Load& load) {
#pragma unroll 2
  for (int i = static_cast<int>(threadIdx.x); i < Lines * Width / 4; i += Threads) {
    const int line = i / (Width / 4), column = i % (Width / 4) * 4;
    float four[4] = {};
    if (vectors) {
      if (column < columns) load.template operator()<4>(line, column, four);
    } else {
#pragma unroll
      for (int k = 0; k < 4; k++) {
        float one[1] = {};
        if (column + k < columns) load.template operator()<1>(line, column + k, one);
        four[k] = one[0];
      }
    }
    storeVec<4>(tile + line * stride + column, four);
  }
}
template <class T>
__device__ __forceinline__ void stageKeyFloats(float* tile, const Geometry& g, const KeyLines& lines, const AnyFloat& qkv,
                                               const float* ring, bool vectors) {
  stageFloats<T::Width, Step, T::Threads>(tile, T::LineStride, g.headDim, vectors, [&]<int N>(int line, int column, float (&to)[N]) {
    if (line < lines.seen.first || line >= lines.seen.end) return;
    if (line < lines.split) loadVec<N>(ring + lines.ring + int64_t{line} * g.headDim + column, to);
    else qkv.load<N>(lines.own + line * lines.stride + column, to);
  });
}
// Packed rows of a matrix with the heads of q, whose rows are `stride` apart.
template <class T, int Lines>
__device__ __forceinline__ void stageQueryFloats(float* tile, int lineStride, const Geometry& g, const Sequence& sequence, int kvHead,
                                                 Range packed, const AnyFloat& from, int64_t stride, bool vectors) {
  stageFloats<T::Width, Lines, T::Threads>(tile, lineStride, g.headDim, vectors, [&]<int N>(int line, int column, float (&to)[N]) {
    const int i = packed.first + line, row = i / g.group;
    if (i < packed.end)
      from.load<N>((sequence.begin + row) * stride + int64_t{kvHead * g.group + i - row * g.group} * g.headDim + column, to);
  });
}

// sums[r] = row r of the warp's 8 · this lane's line, column by column.
template <class T>
__device__ __forceinline__ void multiplyRows(float (&sums)[FloatRows], const float* rows, const float* lines) {
#pragma unroll
  for (int r = 0; r < FloatRows; r++) sums[r] = 0.0f;
  // The sums of 256 columns leave no registers for more.
  [[maybe_unused]] constexpr int AtOnce = T::Columns > 4 ? 1 : 2;
#pragma unroll AtOnce
  for (int column = 0; column < T::Width; column += 4) {
    float line[4];
    loadVec<4>(lines + laneIndex() * T::LineStride + column, line);
#pragma unroll
    for (int r = 0; r < FloatRows; r++) {
      float row[4];
      loadVec<4>(rows + r * T::Width + column, row);
#pragma unroll
      for (int k = 0; k < 4; k++) sums[r] = fmaf(row[k], line[k], sums[r]);
    }
  }
}

// sums[r] += Σ of w[r, line]·line over the step's lines in rising order. A lane writes its line's weights w to shared memory,
// where the warp reads them.
template <class T>
__device__ __forceinline__ void addWeighted(float (&sums)[FloatRows][T::Columns], const float (&w)[FloatRows], float* shared,
                                            const float* lines) {
  __syncwarp();  // nobody reads the weights before these
#pragma unroll
  for (int r = 0; r < FloatRows; r++) shared[r * Step + laneIndex()] = w[r];
  __syncwarp();
  constexpr int AtOnce = T::Columns > 4 ? 2 : 4;
#pragma unroll 1
  for (int line = 0; line < Step; line += AtOnce) {
    float weights[FloatRows][AtOnce];
#pragma unroll
    for (int r = 0; r < FloatRows; r++) loadVec<AtOnce>(shared + r * Step + line, weights[r]);
#pragma unroll
    for (int k = 0; k < AtOnce; k++)
#pragma unroll
      for (int i = 0; i < T::Columns; i += T::Vector) {
        float value[T::Vector];
        loadVec<T::Vector>(lines + (line + k) * T::LineStride + T::column(i), value);
#pragma unroll
        for (int r = 0; r < FloatRows; r++)
#pragma unroll
          for (int v = 0; v < T::Vector; v++) sums[r][i + v] = fmaf(weights[r][k], value[v], sums[r][i + v]);
      }
  }
}

// Whether the warp's row r sees this lane's line of a step that begins at `at`. Lane r has the row's range: 16 numbers in every lane
// would be too many registers.
__device__ __forceinline__ bool seesLane(const Range& range, int r, int at) {
  const int first = __shfl_sync(~0u, range.first, r), end = __shfl_sync(~0u, range.end, r), line = at + laneIndex();
  return line >= first && line < end;
}

// What a warp keeps of its 8 rows: maxima are equal in all lanes, a softmax's sum is of the lane's own keys until close().
template <class T>
struct Rows8 {
  Softmax softmax[FloatRows];
  float sums[FloatRows][T::Columns];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int r = 0; r < FloatRows; r++) {
      softmax[r] = {};
#pragma unroll
      for (int i = 0; i < T::Columns; i++) sums[r][i] = 0.0f;
    }
  }
  // As Rows16::weigh, but that scores are scaled first: the greatest has a weight of exactly 1, and a row that sees one key its value.
  __device__ __forceinline__ void weigh(float (&scores)[FloatRows], float scale) {
#pragma unroll
    for (int r = 0; r < FloatRows; r++) {
      const float most = overWarp(Maximum{}, scores[r]);
      const float greatest = fmaxf(softmax[r].greatest, __fmul_rn(most, scale)), offset = offsetOf(greatest);
      const float shrink = exp2Fast(softmax[r].greatest - offset);
      scores[r] = exp2Fast(__fmul_rn(scores[r], scale) - offset);
      softmax[r] = {greatest, fmaf(softmax[r].sum, shrink, scores[r])};
#pragma unroll
      for (int i = 0; i < T::Columns; i++) sums[r][i] = __fmul_rn(sums[r][i], shrink);
    }
  }
  __device__ __forceinline__ void close() {
#pragma unroll
    for (int r = 0; r < FloatRows; r++) softmax[r].sum = overWarp(Sum{}, softmax[r].sum);
  }
  __device__ __forceinline__ void add(const Rows8& later) {
#pragma unroll
    for (int r = 0; r < FloatRows; r++) {
      const Weights weights = merge(softmax[r], later.softmax[r]);
#pragma unroll
      for (int i = 0; i < T::Columns; i++) sums[r][i] = weights(sums[r][i], later.sums[r][i]);
    }
  }
};

template <class T>
__device__ __forceinline__ void storeRows8(const Forward& forward, const Work& work, int line, const Rows8<T>& rows) {
  const Geometry& g = forward.g;
#pragma unroll
  for (int r = 0; r < FloatRows; r++) {
    if (line + r >= work.place.count) continue;
    const int64_t row = work.row(g, line + r);
    const int head = work.head(g, line + r);
    const bool partial = forward.partial.softmax, first = laneIndex() == 0;
    const int64_t part = partial ? forward.partial.at(g, row, head, work.part) : 0;
    if (partial && first) forward.partial.softmax[part] = rows.softmax[r];
    if (!partial && first && forward.lse) forward.lse[row * g.heads + head] = logOf(rows.softmax[r]);
    const AnyFloat to = partial ? forward.partial.sums : forward.y;
    const int64_t at = partial ? part * g.headDim : row * g.width() + int64_t{head} * g.headDim;
    const float inverse = 1.0f / rows.softmax[r].sum;
    if (!to) continue;
#pragma unroll
    for (int i = 0; i < T::Columns; i++) {
      const int column = T::column(i);
      if (column < g.headDim) to.store<1>(at + column, {partial ? rows.sums[r][i] : finished(rows.sums[r][i], inverse)});
    }
  }
}

// registers: 168 of <32, 1>, 168 of <32, 4>, 176 of <64, 1>, 176 of <64, 4>, 208 of <128, 1>, 208 of <128, 4>,
// 255 of <256, 1>, 255 of <256, 2>
template <class T>
__global__ __launch_bounds__(T::Threads, 1) void attendFloats(const __grid_constant__ Forward forward) {
  SHARED(float, shared);
  float *const queries = shared, *const keys = queries + T::RowElements, *const values = keys + T::LineElements;
  const Geometry& g = forward.g;
  const Work work = workOf<T::Rows>(g, blockIdx.x, forward.partial.parts);
  if (work.tiles == 0) return;
  const Range packed{work.place.first, work.place.first + work.place.count};
  stageQueryFloats<T, T::Rows>(queries, T::Width, g, work.place.sequence, work.kvHead, packed, forward.qkv, g.packed(), forward.vectors);
  const int line = warpIndex() * FloatRows;
  float* const weights = values + T::LineElements + line * Step;
  const Range seen = work.keysOf(g, line + laneIndex() % FloatRows);
  Rows8<T> rows, earlier;
  rows.clear();
  earlier.clear();
#pragma unroll 1
  for (int at = 0; at < work.tiles * KeyTile; at += Step) {
    __syncthreads();  // nobody reads the step before
    const auto stage = [&](float* to, const std::byte* ring, int64_t column) {
      stageKeyFloats<T>(to, g, keyLines(g, work, at, g.packed(), column), forward.qkv, reinterpret_cast<const float*>(ring),
                        forward.vectors);
    };
    stage(keys, forward.keys, g.keyColumn(work.kvHead));
    stage(values, forward.values, g.valueColumn(work.kvHead));
    __syncthreads();
    float scores[FloatRows];
    multiplyRows<T>(scores, queries + line * T::Width, keys);
#pragma unroll
    for (int r = 0; r < FloatRows; r++)
      if (!seesLane(seen, r, at)) scores[r] = Nothing;
    rows.weigh(scores, g.scale * Log2e);
    addWeighted<T>(rows.sums, scores, weights, values);
    const bool last = at + Step == work.tiles * KeyTile;
    if (!last && (work.start + at + Step) % KeyBlock != 0) continue;
    rows.close();
    earlier.add(rows);
    rows.clear();
  }
  storeRows8(forward, work, line, earlier);
}

}  // namespace selscan::cuda::attention
