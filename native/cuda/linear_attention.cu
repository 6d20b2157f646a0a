// Gated linear attention, forward. See lib/ops/linear-attention.ts for the equations, cuda/linear_attention.cuh for a chunk's rows.
//
// A block is a segment × a head × 32 columns of values, and walks the segment chunk by chunk. What does not depend on the values,
// decays, decayed queries and keys, and the rows' weights for each other, every block makes for itself: counted, some two thirds of
// the instructions of the products with S. In those a warp has every fourth key and a lane one column: it adds to y of all 16 rows
// and moves S, which is its own in shared memory, in one pass. The four warps' parts of y are added in order, then the chunk's rows
// so far.
//
// Everything is f32 in plain multiply-adds, in the order of keys and rows that the cpu has too but for the four parts: no tensor
// cores, which would round S and decays to bf16. Many sequences are bound by them: 4·keys·values per row and head, with 4 loads of
// shared memory for 16. One sequence of 4 heads of 256 values is 32 blocks of 4 warps for 132 multiprocessors, and a chunk six
// barriers long: latency bounds it. A single row (decoding) is bound by reading S and by the latency of a chunk's steps, which are
// done for 16 places. The models that have this op are for comparison. Not measured on a GPU yet.
#include "cuda/linear_attention.cuh"

namespace selscan::cuda {
namespace {

using namespace linear;

constexpr int PartFloats = Warps * Rows * Columns;

template <class T>
struct Attention {
  Inputs<T> in;
  const float* initial;  // null: absent
  float *carried, *tail;
  T* y;  // null: nobody reads it
  float *final, *saved;
  int64_t tailColumns;
  int blocks;  // of values

  __device__ __forceinline__ const float* stateBefore(const Segment& segment, int s) const {
    if (initial) return initial + s * in.state();
    return carried && segment.from > 0 ? carried + segment.from * in.state() : nullptr;
  }
  __device__ __forceinline__ const float* tailBefore(const Segment& segment) const {
    return tail && segment.from > 0 ? tail + int64_t{segment.from} * ops::TailRows * tailColumns : nullptr;
  }
};

// One block's part of S and v in shared memory; a state in global memory is (heads, key, value).
template <class T>
struct Part {
  const Attention<T>& a;
  int s, head, column;  // column: of this lane, among the head's values
  bool mine;            // whether there is such a column
  float *S, *v;         // [key][Columns], [place][Columns]

  __device__ __forceinline__ int64_t at(int n) const { return (int64_t{head} * a.in.key + n) * a.in.value + column; }
  // put(n, S) for the keys of this warp; S is this thread's alone.
  template <class Put>
  __device__ __forceinline__ void eachKey(Put put) const {
    for (int n = warpIndex(); n < a.in.key; n += Warps) put(n, S[n * Columns + laneIndex()]);
  }
  __device__ __forceinline__ void keep(float* state) const {
    eachKey([&](int n, float& own) {
      if (mine) state[at(n)] = own;
    });
  }
  __device__ __forceinline__ void stageValues(const ChunkRows& chunk) const {
    const int64_t own = int64_t{head} * a.in.value + column;
    for (int i = warpIndex(); i < Rows; i += Warps) {
      float value = 0.0f;
      if (mine && i >= chunk.first && i < chunk.last) value = toFloat(a.in.v[(chunk.row + i - chunk.first) * a.in.values + own]);
      else if (mine && i < chunk.first && chunk.tail) value = chunk.tail[i * chunk.columns + a.in.keys + own];
      v[i * Columns + laneIndex()] = value;
    }
  }
};

// What a segment starts from, with the tail's rows taken in one by one: saved for the gradient, which knows no tail.
template <class T>
__device__ __forceinline__ void saveStart(const Part<T>& part, const ChunkTile& tile, int places, float* to) {
  part.eachKey([&](int n, float own) {
#pragma unroll 1
    for (int i = 0; i < places; i++)
      own = fmaf(tile.keys[n * Line + i], part.v[i * Columns + laneIndex()], tile.factors[n * Line + i] * own);
    if (part.mine) to[part.at(n)] = own;
  });
}

// This warp's part of queries × S, and S after the chunk: in its place where it moves, and to `final` where there is one.
template <class T>
__device__ __forceinline__ void multiplyState(const Part<T>& part, const ChunkTile& tile, bool moves, float* final, float (&y)[Rows]) {
  float v[Rows];
#pragma unroll
  for (int i = 0; i < Rows; i++) {
    v[i] = part.v[i * Columns + laneIndex()];
    y[i] = 0.0f;
  }
#pragma unroll 1
  for (int n = warpIndex(); n < part.a.in.key; n += Warps) {
    float& own = part.S[n * Columns + laneIndex()];
    const float S = own;
    float line[Rows];
    readLine(tile.queries + n * Line, line);
#pragma unroll
    for (int i = 0; i < Rows; i++) y[i] = fmaf(line[i], S, y[i]);
    if (!moves && !final) continue;
    float next = tile.decay[n] * S;
    readLine(tile.keys + n * Line, line);
#pragma unroll
    for (int i = 0; i < Rows; i++) next = fmaf(line[i], v[i], next);
    if (moves) own = next;
    if (final && part.mine) final[part.at(n)] = next;
  }
}

// y of a chunk's rows, four to a warp: the warps' parts in order, then the rows so far.
template <class T>
__device__ __forceinline__ void writeRows(const Part<T>& part, const ChunkTile& tile, const ChunkRows& chunk, const float* parts) {
  float v[Rows];
#pragma unroll
  for (int i = 0; i < Rows; i++) v[i] = part.v[i * Columns + laneIndex()];
#pragma unroll
  for (int r = 0; r < Rows / Warps; r++) {
    const int i = warpIndex() * (Rows / Warps) + r;
    float sum = 0.0f;
#pragma unroll
    for (int warp = 0; warp < Warps; warp++) sum += parts[(warp * Rows + i) * Columns + laneIndex()];
#pragma unroll
    for (int j = 0; j < Rows; j++)
      if (j <= i) sum = fmaf(tile.weights[i * Rows + j], v[j], sum);
    if (!part.mine || i < chunk.first || i >= chunk.last) continue;
    const int64_t row = chunk.row + i - chunk.first;
    part.a.y[row * part.a.in.values + int64_t{part.head} * part.a.in.value + part.column] = fromFloat<T>(sum);
  }
}

// Zeros in the spare rows before segment s and, for the last line, in those after all segments.
template <class T>
__device__ __forceinline__ void zeroSpare(const Attention<T>& a, const Segment& segment, int s, int head, int first) {
  const bool used = isUsed(segment), last = s == a.in.lines - 1;
  if (!used && !last) return;
  const int before = endBefore(a.in.segments, s), columns = min(Columns, a.in.value - first);
  T* const to = a.y + int64_t{head} * a.in.value + first;
  if (used) zeroRows<Threads, Columns>(to, a.in.values, before, segment.begin, columns, false);
  if (last) zeroRows<Threads, Columns>(to, a.in.values, used ? segment.end : before, a.in.rows, columns, false);
}

// registers: 168
template <class T>
__global__ __launch_bounds__(Threads) void attend(const __grid_constant__ Attention<T> a) {
  SHARED(float, shared);
  const int block = static_cast<int>(blockIdx.x % a.blocks), rest = static_cast<int>(blockIdx.x / a.blocks);
  const int key = a.in.key, column = block * Columns + laneIndex();
  const ChunkTile tile(shared, key, PartFloats);
  float* const parts = tile.factors;
  float* const S = shared + ChunkTile::floats(key, PartFloats);
  const Part<T> part{a, rest / a.in.heads, rest % a.in.heads, column, column < a.in.value, S, S + key * Columns};
  const Segment segment = readSegment(a.in.segments, part.s);
  const Span span(segment);
  const float *start = a.stateBefore(segment, part.s), *tail = a.tailBefore(segment);
  if (a.y) zeroSpare(a, segment, part.s, part.head, block * Columns);
  part.eachKey([&](int n, float& own) { own = start && part.mine && span.rows > 0 ? start[part.at(n)] : 0.0f; });
  float* const final = a.final ? a.final + part.s * a.in.state() : nullptr;
  if (span.rows == 0 && final) part.keep(final);

#pragma unroll 1
  for (int64_t c = 0; c < span.count(); c++) {
    const ChunkRows chunk{segment.begin + span.row(c), span.first(c), span.last(c), c == 0 ? tail : nullptr, a.tailColumns};
    stageChunk(a.in, part.head, chunk, tile);
    part.stageValues(chunk);
    __syncthreads();
    if (a.saved && c == span.firstOf(span.save(c))) {
      float* to = a.saved + (savedState(segment.begin, part.s) + span.save(c)) * a.in.state();
      if (c == 0) saveStart(part, tile, chunk.first, to);
      else part.keep(to);
      __syncthreads();
    }
    weighRows(tile, key);
    __syncthreads();
    decayQueries(tile, key);
    __syncthreads();
    float y[Rows];
    multiplyState(part, tile, c < span.ended(), c + 1 == span.count() ? final : nullptr, y);
#pragma unroll
    for (int i = 0; i < Rows; i++) parts[(warpIndex() * Rows + i) * Columns + laneIndex()] = y[i];
    __syncthreads();
    if (a.y) writeRows(part, tile, chunk, parts);
    __syncthreads();
  }
  const bool stays = segment.from == segment.to && span.ended() == 0;
  if (a.carried && span.rows > 0 && segment.to > 0 && !stays) part.keep(a.carried + segment.to * a.in.state());
}

constexpr unsigned TailThreads = 256;

// The rows of the chunk that has not ended, to the slot that the segment goes to: a kernel of its own, since blocks of other columns
// may still read the lines of the slot that it comes from.
// registers: 32
template <class T>
__global__ __launch_bounds__(TailThreads) void writeTail(const __grid_constant__ Attention<T> a) {
  const int s = static_cast<int>(blockIdx.x) / ops::TailRows, place = static_cast<int>(blockIdx.x) % ops::TailRows;
  const Segment segment = readSegment(a.in.segments, s);
  const Span span(segment);
  if (span.rows == 0 || segment.to == 0 || place >= span.left()) return;
  const int64_t row = segment.end - span.left() + place, keys = a.in.keys, values = a.in.values;
  float* const to = a.tail + (int64_t{segment.to} * ops::TailRows + place) * a.tailColumns;
  const float* const tail = a.tailBefore(segment);
  if (row < segment.begin && segment.from == segment.to) return;
  for (int64_t column = threadIdx.x; column < a.tailColumns; column += TailThreads) {
    float x = 0.0f;
    if (row < segment.begin) x = tail ? tail[place * a.tailColumns + column] : 0.0f;
    else if (column < keys) x = toFloat(a.in.k[row * keys + column]);
    else if (column < keys + values) x = toFloat(a.in.v[row * values + column - keys]);
    else x = toFloat(a.in.g[row * keys + column - keys - values]);
    to[column] = x;
  }
}

template <class T>
void attendAs(const Call& call) {
  const auto [q, k, v, g, segments, initial, carried, tail] = call.in<8>();
  const auto [y, final, saved] = call.out<3>();
  const Inputs<T> in = inputsOf<T>(call, q, k, v, g, segments);
  const Attention<T> a{in, initial.f32(), carried.f32(), tail.f32(), dataOf<T>(y), final.f32(), saved.f32(), tail ? tail[2] : 0,
                       static_cast<int>(ceilDiv(in.value, Columns))};
  const size_t floats = static_cast<size_t>(ChunkTile::floats(in.key, PartFloats) + (in.key + Rows) * Columns);
  const auto blocks = static_cast<unsigned>(int64_t{in.lines} * in.heads * a.blocks);
  launch(deviceOf(call), {blocks, Threads, floats * sizeof(float)}, attend<T>, a);
  if (tail) launch(deviceOf(call), {static_cast<unsigned>(in.lines * ops::TailRows), TailThreads}, writeTail<T>, a);
}

void linearAttention(const Call& call) {
  withType(call.inputs[0].dtype, [&]<class T>() { attendAs<T>(call); });
}

std::string limit(const Call& call) {
  const std::string wrong = ops::linearAttentionLimit(call);
  if (!wrong.empty()) return wrong;
  const auto heads = static_cast<int64_t>(call.attributes.number("heads"));
  const int64_t blocks = ceilDiv(call.inputs[2][1] / heads, Columns);
  return gridLimit(call.inputs[4], call.inputs[0][0], heads, std::max<int64_t>(ops::TailRows, blocks));
}

KERNEL(linearAttention, cuda, "q k v g? segments initial? carried?* tail?* -> y final saved; heads scale retention", .run = linearAttention,
       .limit = limit, .checkInputs = ops::checkLinearAttention)

}  // namespace
}  // namespace selscan::cuda
