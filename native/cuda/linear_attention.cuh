// What the kernels of gated linear attention share, forward and backward: how a segment falls into chunks, and what a chunk's rows
// need of q, k and g.
//
// In shared memory a key has a line of the 16 rows of a chunk, 20 floats apart: a thread that owns the key moves the line in vectors
// of 4, and 8 threads side by side, or 8 keys read by as many, then meet all 32 banks once.
#pragma once
#include "cuda/launch.cuh"
#include "cuda/scan_tile.cuh"
#include "ops/linear_attention.h"

namespace selscan::cuda::linear {

constexpr int Rows = ops::ChunkRows;
constexpr int Line = Rows + 4;
constexpr int Threads = 128, Warps = Threads / 32;  // of the kernels that walk chunks
constexpr int Columns = 32;                         // of values, of a block

// As ops::Chunks, which is the host's.
struct Span {
  int64_t rows;
  int at;

  __device__ __forceinline__ explicit Span(const Segment& segment)
      : rows(isUsed(segment) ? segment.end - segment.begin : 0), at(segment.position % Rows) {}
  __device__ __forceinline__ int64_t count() const { return rows > 0 ? (at + rows - 1) / Rows + 1 : 0; }
  __device__ __forceinline__ int64_t ended() const { return (at + rows) / Rows; }
  __device__ __forceinline__ int left() const { return static_cast<int>((at + rows) % Rows); }
  __device__ __forceinline__ int64_t row(int64_t chunk) const { return chunk == 0 ? 0 : chunk * Rows - at; }
  __device__ __forceinline__ int first(int64_t chunk) const { return chunk == 0 ? at : 0; }
  __device__ __forceinline__ int last(int64_t chunk) const { return static_cast<int>(min(int64_t{Rows}, at + rows - chunk * Rows)); }
  __device__ __forceinline__ int64_t save(int64_t chunk) const { return row(chunk) / ops::SaveRows; }
  __device__ __forceinline__ int64_t firstOf(int64_t save) const { return save == 0 ? 0 : (save * ops::SaveRows + at + Rows - 1) / Rows; }
};
__device__ __forceinline__ int64_t savedState(int begin, int64_t s) { return begin / ops::SaveRows + s; }

// Shapes and inputs of a call.
template <class T>
struct Inputs {
  const T *q, *k, *v, *g;  // g null: absent
  const int32_t* segments;
  int64_t rows, keys, values;
  int lines, heads, key, value;
  float scale;
  bool retention;

  // The factor of every key of head h where there is no g. 2^−(5 + h) is made of its exponent, and lost in the sum from h = 20 on.
  __device__ __forceinline__ float decay(int head) const {
    return retention && head < 32 ? 1.0f - __uint_as_float(static_cast<unsigned>(127 - 5 - head) << 23) : 1.0f;
  }
  __host__ __device__ int64_t state() const { return int64_t{heads} * key * value; }
};
template <class T>
Inputs<T> inputsOf(const Call& call, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& g, const Tensor& segments) {
  const auto heads = static_cast<int>(call.attributes.number("heads"));
  return {.q = dataOf<T>(q),
          .k = dataOf<T>(k),
          .v = dataOf<T>(v),
          .g = dataOf<T>(g),
          .segments = segments.i32(),
          .rows = k[0],
          .keys = k[1],
          .values = v[1],
          .lines = static_cast<int>(segments[0]),
          .heads = heads,
          .key = static_cast<int>(k[1] / heads),
          .value = static_cast<int>(v[1] / heads),
          .scale = static_cast<float>(call.attributes.number("scale")),
          .retention = call.attributes.flag("retention")};
}

// Places [first, last) of a chunk are rows of the run, from `row` on; those before are lines of a tail, `columns` apart, or nothing.
struct ChunkRows {
  int64_t row;
  int first, last;
  const float* tail;  // of place 0; null: no tail
  int64_t columns;
};

// A chunk of one head in shared memory.
struct ChunkTile {
  float *factors, *queries, *keys;  // [key][Line]
  float* weights;                   // [row][row]
  float* decay;                     // [key]

  // Factors have room for what else the caller keeps there once they are used.
  static __host__ __device__ int factorFloats(int key, int atLeast) { return key * Line > atLeast ? key * Line : atLeast; }
  static __host__ __device__ int floats(int key, int atLeast) {
    return factorFloats(key, atLeast) + 2 * key * Line + Rows * Rows + (key + 3) / 4 * 4;
  }
  __device__ __forceinline__ ChunkTile(float* at, int key, int atLeast)
      : factors(at), queries(at + factorFloats(key, atLeast)), keys(queries + key * Line), weights(keys + key * Line),
        decay(weights + Rows * Rows) {}
};

// A key's line of 16 numbers.
__device__ __forceinline__ void readLine(const float* from, float (&to)[Rows]) {
#pragma unroll
  for (int i = 0; i < Rows; i += 4) {
    float four[4];
    loadVec<4>(from + i, four);
#pragma unroll
    for (int k = 0; k < 4; k++) to[i + k] = four[k];
  }
}
__device__ __forceinline__ void writeLine(float* to, const float (&from)[Rows]) {
#pragma unroll
  for (int i = 0; i < Rows; i += 4) storeVec<4>(to + i, {from[i], from[i + 1], from[i + 2], from[i + 3]});
}

// a, scale·q and k of a chunk as they are; 1, 0 and 0 where there is no row. A thread takes one key after another.
template <class T>
__device__ __forceinline__ void stageChunk(const Inputs<T>& in, int head, const ChunkRows& chunk, const ChunkTile& tile) {
  const float fixed = in.decay(head);
#pragma unroll 1
  for (int n = static_cast<int>(threadIdx.x); n < in.key; n += Threads) {
    const int64_t column = int64_t{head} * in.key + n;
    float a[Rows], q[Rows], k[Rows];
#pragma unroll
    for (int i = 0; i < Rows; i++) {
      const bool own = i >= chunk.first && i < chunk.last, before = i < chunk.first && chunk.tail != nullptr;
      const int64_t at = (chunk.row + i - chunk.first) * in.keys + column;
      q[i] = own ? toFloat(in.q[at]) * in.scale : 0.0f;
      k[i] = own ? toFloat(in.k[at]) : before ? chunk.tail[i * chunk.columns + column] : 0.0f;
      if (in.g) a[i] = own ? toFloat(in.g[at]) : before ? chunk.tail[i * chunk.columns + in.keys + in.values + column] : 0.0f;
      else a[i] = own || before ? fixed : 1.0f;
    }
    if (in.g) {
#pragma unroll
      for (int i = 0; i < Rows; i++) a[i] = expf(a[i]);  // not the fast one: long memory lives near 1
    }
    writeLine(tile.factors + n * Line, a);
    writeLine(tile.queries + n * Line, q);
    writeLine(tile.keys + n * Line, k);
  }
}

// Weights of the rows for each other, and keys decayed to the chunk's end. A thread has one row j and every 8th key: k[j] decays from
// row to row, and meets each row's q on its way. The 8 lanes of a row then add up.
__device__ __forceinline__ void weighRows(const ChunkTile& tile, int key) {
  const int j = static_cast<int>(threadIdx.x) / 8, lane = static_cast<int>(threadIdx.x) % 8;
  float sum[Rows];
#pragma unroll
  for (int i = 0; i < Rows; i++) sum[i] = 0.0f;
#pragma unroll 1
  for (int n = lane; n < key; n += 8) {
    float a[Rows], q[Rows], k = tile.keys[n * Line + j];
    readLine(tile.factors + n * Line, a);
    readLine(tile.queries + n * Line, q);
#pragma unroll
    for (int i = 0; i < Rows; i++) {
      if (i > j) k *= a[i];
      if (i >= j) sum[i] = fmaf(q[i], k, sum[i]);
    }
    tile.keys[n * Line + j] = k;
  }
#pragma unroll
  for (int i = 0; i < Rows; i++) {
    const float all = sumLanes<8>(sum[i]);
    if (lane == i % 8) tile.weights[i * Rows + j] = all;  // 0 for i < j
  }
}

// Queries decayed from the chunk's start, and the decay of the whole chunk.
__device__ __forceinline__ void decayQueries(const ChunkTile& tile, int key) {
#pragma unroll 1
  for (int n = static_cast<int>(threadIdx.x); n < key; n += Threads) {
    float a[Rows], q[Rows], decay = 1.0f;
    readLine(tile.factors + n * Line, a);
    readLine(tile.queries + n * Line, q);
#pragma unroll
    for (int i = 0; i < Rows; i++) {
      decay *= a[i];
      q[i] *= decay;
    }
    writeLine(tile.queries + n * Line, q);
    tile.decay[n] = decay;
  }
}

// What is wrong with a grid of lines × heads × blocks of values, or of chunks × heads; empty when nothing is.
inline std::string gridLimit(const Tensor& segments, int64_t rows, int64_t heads, int64_t blocks) {
  const int64_t most = std::max(segments[0] * blocks, rows / Rows + 2 * segments[0]);
  if (most <= std::numeric_limits<int32_t>::max() / heads) return {};
  return "segments × heads are at most 2^31 blocks of threads, got " + std::to_string(segments[0]) + " × " + std::to_string(heads);
}

}  // namespace selscan::cuda::linear
