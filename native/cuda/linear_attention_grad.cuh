// The parts of the backward kernels of gated linear attention: how a block finds its chunk or its saved state, and the products of a
// saved state's chunks. The plan is in cuda/linear_attention_grad.cu.
#pragma once
#include "cuda/linear_attention.cuh"

namespace selscan::cuda::linear {

constexpr int Block = 16;                        // columns of values at a time in gradColumns
constexpr int KeyThreadsMost = ops::KeyMax;      // its threads: a key each
constexpr int Chunks = ops::ChunksOfSave;

template <class T>
struct AttentionGrad {
  Inputs<T> in;
  const T* dy;          // null: zeros
  const float* dfinal;  // null: zeros
  const float* saved;
  T *dq, *dk, *dv, *dg;  // null: nobody reads it
  float* dinitial;
  int blocks;                // of values, in carryGradient
  float *queries, *keys, *dQueries, *dKeys;  // [row][keys]
  float *weights, *dWeights;                 // [row][head][row of the chunk]
  float *decay, *dDecay;                     // [slot][keys]
  float* ends;                               // dS after the chunks of each saved state

  __device__ __forceinline__ int64_t keyAt(int64_t row, int head) const { return row * in.keys + int64_t{head} * in.key; }
  __device__ __forceinline__ int64_t valueAt(int64_t row, int head) const { return row * in.values + int64_t{head} * in.value; }
  __device__ __forceinline__ int64_t weightsAt(int64_t row, int head) const { return (row * in.heads + head) * Rows; }
  __device__ __forceinline__ int64_t stateAt(int64_t state, int head) const { return (state * in.heads + head) * in.key * in.value; }
};

// Where the chunks of segment s lie in the workspace, and the saved states of `saved`: as many as it has from there on.
__device__ __forceinline__ int64_t chunkSlot(int begin, int64_t s) { return begin / Rows + 2 * s; }

// A chunk of a segment; rows 0: none.
struct Chunk {
  int64_t row, slot;
  int rows;
};
__device__ __forceinline__ Chunk chunkOf(const Segment& segment, const Span& span, int64_t s, int64_t chunk) {
  return {segment.begin + span.row(chunk), chunkSlot(segment.begin, s) + chunk, span.last(chunk) - span.first(chunk)};
}

template <class T>
__device__ __forceinline__ Chunk chunkAt(const Inputs<T>& in, int64_t slot) {
  const int s = lineWhere(in.segments, in.lines, [slot](const Segment& segment, int line) {
    const int64_t first = chunkSlot(segment.begin, line);
    return slot >= first && slot < first + Span(segment).count();
  });
  if (s < 0) return {0, slot, 0};
  const Segment segment = readSegment(in.segments, s);
  return chunkOf(segment, Span(segment), s, slot - chunkSlot(segment.begin, s));
}

// What gradColumns has in shared memory: S before each of its chunks but the first and dS, of which a thread has a column of floats
// `threads` apart; v and dy of all chunks as [column][row]; each warp's part of dv, and a chunk's weights. 99 KB for 256 keys, what the
// smallest devices have.
struct ColumnTile {
  float *states, *dS, *v, *dy, *parts, *weights;
  static constexpr int Tile = Block * Rows, Own = (Chunks - 1) * Block;
  static __host__ __device__ int floats(int threads) {
    return (Own + Block) * threads + 2 * Chunks * Tile + threads / 32 * Rows * Block + Rows * Rows;
  }
  __device__ __forceinline__ ColumnTile(float* at, int threads)
      : states(at + threadIdx.x), dS(states + Own * threads), v(at + (Own + Block) * threads), dy(v + Chunks * Tile),
        parts(dy + Chunks * Tile), weights(parts + threads / 32 * Rows * Block) {}
};

// The rows' x of the key n, in the workspace.
template <class T>
__device__ __forceinline__ void loadRows(const AttentionGrad<T>& a, const float* lines, const Chunk& place, int head, int n, bool mine,
                                         float (&to)[Rows]) {
  const float* from = lines + a.keyAt(place.row, head) + n;
#pragma unroll
  for (int i = 0; i < Rows; i++) to[i] = mine && i < place.rows ? from[i * a.in.keys] : 0.0f;
}
template <class T>
__device__ __forceinline__ void addRows(const AttentionGrad<T>& a, float* lines, const Chunk& place, int head, int n, bool fresh,
                                        const float (&sum)[Rows]) {
  float* to = lines + a.keyAt(place.row, head) + n;
#pragma unroll
  for (int i = 0; i < Rows; i++)
    if (i < place.rows) to[i * a.in.keys] = (fresh ? 0.0f : to[i * a.in.keys]) + sum[i];
}

// A block's saved state, its head, and the thread's key.
template <class T>
struct Save {
  const AttentionGrad<T>& a;
  const Segment segment;
  const Span span;
  int s, head, n;
  bool mine;  // whether there is such a key
  int64_t state, first;
  int count;  // chunks, from `first` on

  __device__ __forceinline__ Chunk place(int i) const { return chunkOf(segment, span, s, first + i); }
  __device__ __forceinline__ float decay(const Chunk& place) const { return mine ? a.decay[a.keyAt(place.slot, head) + n] : 0.0f; }
  // Column `column` of a state in memory.
  __device__ __forceinline__ float at(const float* states, int column) const {
    return mine && column < a.in.value ? states[a.stateAt(state, head) + int64_t{n} * a.in.value + column] : 0.0f;
  }
  __device__ __forceinline__ void stageColumns(const ColumnTile& tile, int column) const {
    for (int i = static_cast<int>(threadIdx.x); i < count * Rows * Block; i += static_cast<int>(blockDim.x)) {
      const int chunk = i / (Rows * Block), row = i / Block % Rows, d = i % Block;
      const Chunk at = place(chunk);
      const bool there = row < at.rows && column + d < a.in.value;
      const int64_t from = a.valueAt(at.row + row, head) + column + d;
      const int to = chunk * ColumnTile::Tile + d * Rows + row;
      tile.v[to] = there ? toFloat(a.in.v[from]) : 0.0f;
      tile.dy[to] = there && a.dy ? toFloat(a.dy[from]) : 0.0f;
    }
  }
};

// dv of a chunk's 16 columns: k̄·dS summed over the keys of each warp, then over the warps, then the later rows' weights.
template <class T>
__device__ __forceinline__ void gradValues(const Save<T>& save, const ColumnTile& tile, const Chunk& place, int chunk, int column) {
  const AttentionGrad<T>& a = save.a;
  const int threads = static_cast<int>(blockDim.x), lane = laneIndex() % Block;
  const float* keys = a.keys + a.keyAt(place.row, save.head) + save.n;
  float dS[Block];
#pragma unroll
  for (int d = 0; d < Block; d++) dS[d] = tile.dS[d * threads];
#pragma unroll 4
  for (int j = 0; j < place.rows; j++, keys += a.in.keys) {
    const float key = save.mine ? *keys : 0.0f;
    const float half = sumTransposed<Block>(lane, [&](int d) { return key * dS[d]; });
    const float sum = half + __shfl_xor_sync(~0u, half, Block);
    if (laneIndex() < Block) tile.parts[(warpIndex() * Rows + j) * Block + lane] = sum;
  }
  for (int i = static_cast<int>(threadIdx.x); i < place.rows * Rows; i += threads)
    tile.weights[i] = a.weights[a.weightsAt(place.row + i / Rows, save.head) + i % Rows];
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < place.rows * Block; i += threads) {
    const int j = i / Block, d = i % Block;
    float sum = 0.0f;
    for (int warp = 0; warp < threads / 32; warp++) sum += tile.parts[(warp * Rows + j) * Block + d];
    for (int row = j; row < place.rows; row++)
      sum = fmaf(tile.weights[row * Rows + j], tile.dy[chunk * ColumnTile::Tile + d * Rows + row], sum);
    if (a.dv && column + d < a.in.value) a.dv[a.valueAt(place.row + j, save.head) + column + d] = fromFloat<T>(sum);
  }
  __syncthreads();
}

// S before every chunk, from the saved state on; then dS, from the kept one.
template <class T>
__device__ __forceinline__ void readStates(const Save<T>& save, const ColumnTile& tile, int column) {
  const int threads = static_cast<int>(blockDim.x);
#pragma unroll 1
  for (int i = 0; i + 1 < save.count; i++) {
    const Chunk place = save.place(i);
    const float* v = tile.v + i * ColumnTile::Tile;
    const float decay = save.decay(place);
    float keys[Rows];
    loadRows(save.a, save.a.keys, place, save.head, save.n, save.mine, keys);
#pragma unroll 2
    for (int d = 0; d < Block; d++) {
      float rows[Rows], next = decay * (i == 0 ? save.at(save.a.saved, column + d) : tile.states[((i - 1) * Block + d) * threads]);
      readLine(v + d * Rows, rows);
#pragma unroll
      for (int j = 0; j < Rows; j++) next = fmaf(keys[j], rows[j], next);
      tile.states[(i * Block + d) * threads] = next;
    }
  }
#pragma unroll 4
  for (int d = 0; d < Block; d++) tile.dS[d * threads] = save.at(save.a.ends, column + d);
}

// A chunk's dq̄, dk̄ and Σ S∘dS, and dS before it.
template <class T>
__device__ __forceinline__ void gradChunk(const Save<T>& save, const ColumnTile& tile, const Chunk& place, int chunk, int column) {
  const AttentionGrad<T>& a = save.a;
  const int threads = static_cast<int>(blockDim.x);
  const float *v = tile.v + chunk * ColumnTile::Tile, *dy = tile.dy + chunk * ColumnTile::Tile;
  const float decay = save.decay(place);
  float queries[Rows], toQueries[Rows], toKeys[Rows], through = 0.0f;
  loadRows(a, a.queries, place, save.head, save.n, save.mine, queries);
#pragma unroll
  for (int i = 0; i < Rows; i++) toQueries[i] = toKeys[i] = 0.0f;
#pragma unroll 1
  for (int d = 0; d < Block; d++) {
    const float S = chunk == 0 ? save.at(a.saved, column + d) : tile.states[((chunk - 1) * Block + d) * threads];
    const float dS = tile.dS[d * threads];
    float rows[Rows], before = decay * dS;
    through = fmaf(S, dS, through);
    readLine(v + d * Rows, rows);
#pragma unroll
    for (int i = 0; i < Rows; i++) toKeys[i] = fmaf(rows[i], dS, toKeys[i]);
    readLine(dy + d * Rows, rows);
#pragma unroll
    for (int i = 0; i < Rows; i++) {
      toQueries[i] = fmaf(rows[i], S, toQueries[i]);
      before = fmaf(queries[i], rows[i], before);
    }
    tile.dS[d * threads] = before;
  }
  if (!save.mine) return;
  addRows(a, a.dKeys, place, save.head, save.n, column == 0, toKeys);
  addRows(a, a.dQueries, place, save.head, save.n, column == 0, toQueries);
  float* const total = a.dDecay + a.keyAt(place.slot, save.head) + save.n;
  *total = (column == 0 ? 0.0f : *total) + through;
}

}  // namespace selscan::cuda::linear
