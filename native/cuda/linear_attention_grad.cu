// Gated linear attention, backward. See lib/ops/linear-attention.ts for the equations and cpu/linear_attention_grad.cpp for those of a
// chunk: q̄, k̄ and the weights w of its rows, their gradients, and what of them is whose.
//
// Five kernels, each cut by shape alone, no sums across blocks:
//
//   prepare        a chunk × a head: q̄, k̄, w, dw and the decay of the chunk, to the workspace
//   carryGradient  a segment × a head × 32 columns of values, chunks from the last to the first: dS, kept at the end of the chunks of
//                  every saved state, and dinitial
//   gradColumns    a saved state × a head, a thread for each key: S of its chunks again and dS back through them, 16 columns of values
//                  at a time; dq̄, dk̄ and Σ S∘dS add up in the workspace over these, dv is done
//   finish         a chunk × a head, a thread for each key: dq, dk and dg
//   zeroSpare      rows in no segment
//
// So only the two passes over S and dS are in order of the rows, the first inside 64 rows and the second with one product of five.
// Workspace: 16.5 bytes per element of q, 128 per row and head, 16 per line of segments and key, and as much as the saved states.
//
// Everything is f32 in plain multiply-adds, as in the forward pass, 12·keys·values per row and head. carryGradient has few blocks and
// long rows of chunks, and is bound by latency where a run has few sequences. gradColumns adds to dq̄ and dk̄ once for every 16
// columns, in L2. The models that have this op are for comparison. Not measured on a GPU yet.
#include "cuda/linear_attention_grad.cuh"

namespace selscan::cuda {
namespace {

using namespace linear;

// dw[i][j] = Σ_value dy[i]·v[j], by the 8 lanes of row j.
template <class T>
__device__ __forceinline__ void gradWeights(const AttentionGrad<T>& a, const Chunk& place, int head) {
  const int j = static_cast<int>(threadIdx.x) / 8, lane = static_cast<int>(threadIdx.x) % 8;
  float sum[Rows];
#pragma unroll
  for (int i = 0; i < Rows; i++) sum[i] = 0.0f;
  const T *dy = a.dy + a.valueAt(place.row, head), *v = a.in.v + a.valueAt(place.row, head);
#pragma unroll 1
  for (int column = lane; column < a.in.value; column += 8) {
    const float own = j < place.rows ? toFloat(v[j * a.in.values + column]) : 0.0f;
#pragma unroll
    for (int i = 0; i < Rows; i++)
      if (i < place.rows) sum[i] = fmaf(toFloat(dy[i * a.in.values + column]), own, sum[i]);
  }
  float* to = a.dWeights + a.weightsAt(place.row, head) + j;
#pragma unroll
  for (int i = 0; i < Rows; i++) {
    const float all = sumLanes<8>(sum[i]);
    if (lane == i % 8 && i < place.rows) to[int64_t{i} * a.in.heads * Rows] = all;
  }
}

// registers: 128
template <class T>
__global__ __launch_bounds__(Threads) void prepare(const __grid_constant__ AttentionGrad<T> a) {
  SHARED(float, shared);
  const int head = static_cast<int>(blockIdx.x % a.in.heads), key = a.in.key;
  const Chunk place = chunkAt(a.in, blockIdx.x / a.in.heads);
  if (place.rows == 0) return;
  const ChunkTile tile(shared, key, 0);
  stageChunk(a.in, head, {place.row, 0, place.rows, nullptr, 0}, tile);
  __syncthreads();
  weighRows(tile, key);
  __syncthreads();
  decayQueries(tile, key);
  const int64_t at = a.keyAt(place.row, head);
  // A thread's queries and decays are those it made itself; keys and weights were there before.
  for (int n = static_cast<int>(threadIdx.x); n < key; n += Threads) {
    a.decay[a.keyAt(place.slot, head) + n] = tile.decay[n];
    for (int i = 0; i < place.rows; i++) {
      a.queries[at + i * a.in.keys + n] = tile.queries[n * Line + i];
      a.keys[at + i * a.in.keys + n] = tile.keys[n * Line + i];
    }
  }
  for (int i = static_cast<int>(threadIdx.x); i < place.rows * Rows; i += Threads)
    a.weights[a.weightsAt(place.row + i / Rows, head) + i % Rows] = tile.weights[i];
  if (a.dy) gradWeights(a, place, head);
}

// The chunks' q̄ as lines of keys, and their decay.
template <class T>
__device__ __forceinline__ void stageQueries(const AttentionGrad<T>& a, const Chunk& place, int head, float* queries, float* decay) {
  const float* from = a.queries + a.keyAt(place.row, head);
#pragma unroll 1
  for (int n = static_cast<int>(threadIdx.x); n < a.in.key; n += Threads) {
    float line[Rows];
#pragma unroll
    for (int i = 0; i < Rows; i++) line[i] = i < place.rows ? from[i * a.in.keys + n] : 0.0f;
    writeLine(queries + n * Line, line);
    decay[n] = a.decay[a.keyAt(place.slot, head) + n];
  }
}

// dS is a thread's own in shared memory: a warp has every fourth key, a lane one column.
// registers: 96
template <class T>
__global__ __launch_bounds__(Threads) void carryGradient(const __grid_constant__ AttentionGrad<T> a) {
  SHARED(float, shared);
  const int rest = static_cast<int>(blockIdx.x / a.blocks), s = rest / a.in.heads, head = rest % a.in.heads;
  const int column = static_cast<int>(blockIdx.x % a.blocks) * Columns + laneIndex();
  const bool mine = column < a.in.value;
  float *const queries = shared, *const dS = queries + a.in.key * Line, *const decay = dS + a.in.key * Columns;
  const Segment segment = readSegment(a.in.segments, s);
  const Span span(segment);
  const auto eachKey = [&](auto put) {
    for (int n = warpIndex(); n < a.in.key; n += Warps) put(int64_t{n} * a.in.value + column, n, dS[n * Columns + laneIndex()]);
  };
  const auto keep = [&](float* to) {
    eachKey([&](int64_t at, int, float own) {
      if (mine) to[at] = own;
    });
  };
  const float* const dfinal = a.dfinal && mine && span.rows > 0 ? a.dfinal + a.stateAt(s, head) : nullptr;
  eachKey([&](int64_t at, int, float& own) { own = dfinal ? dfinal[at] : 0.0f; });

#pragma unroll 1
  for (int64_t c = span.count() - 1; c >= 0; c--) {
    const Chunk place = chunkOf(segment, span, s, c);
    if (c + 1 == span.count() || span.save(c + 1) != span.save(c))
      keep(a.ends + a.stateAt(savedState(segment.begin, s) + span.save(c), head));
    stageQueries(a, place, head, queries, decay);
    float dy[Rows];
#pragma unroll
    for (int i = 0; i < Rows; i++)
      dy[i] = a.dy && mine && i < place.rows ? toFloat(a.dy[a.valueAt(place.row + i, head) + column]) : 0.0f;
    __syncthreads();
    eachKey([&](int64_t, int n, float& own) {
      float line[Rows], next = decay[n] * own;
      readLine(queries + n * Line, line);
#pragma unroll
      for (int i = 0; i < Rows; i++) next = fmaf(line[i], dy[i], next);
      own = next;
    });
    __syncthreads();
  }
  if (a.dinitial) keep(a.dinitial + a.stateAt(s, head));
}

// registers: 168
template <class T>
__global__ __launch_bounds__(KeyThreadsMost, 1) void gradColumns(const __grid_constant__ AttentionGrad<T> a) {
  SHARED(float, shared);
  const int head = static_cast<int>(blockIdx.x % a.in.heads), n = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const int64_t state = blockIdx.x / a.in.heads;
  const int s = lineWhere(a.in.segments, a.in.lines, [state](const Segment& segment, int line) {
    const Span span(segment);
    const int64_t first = savedState(segment.begin, line);
    return state >= first && state <= first + span.save(span.count() - 1);
  });
  if (s < 0) return;
  const Segment segment = readSegment(a.in.segments, s);
  const Span span(segment);
  const int64_t number = state - savedState(segment.begin, s), first = span.firstOf(number);
  const Save<T> save{a, segment, span, s, head, n, n < a.in.key, state, first,
                     static_cast<int>(min(span.count(), span.firstOf(number + 1)) - first)};
  const ColumnTile tile(shared, threads);
#pragma unroll 1
  for (int column = 0; column < a.in.value; column += Block) {
    save.stageColumns(tile, column);
    __syncthreads();
    readStates(save, tile, column);
#pragma unroll 1
    for (int i = save.count - 1; i >= 0; i--) {
      const Chunk place = save.place(i);
      gradValues(save, tile, place, i, column);
      gradChunk(save, tile, place, i, column);
    }
    __syncthreads();
  }
}

// A chunk of one head in finish: the rows of one key.
template <class T>
struct KeyRows {
  const AttentionGrad<T>& a;
  int64_t at;     // of the key in the first row
  int rows;
  float fixed;    // a where there is no g
  float through[Rows];  // of a[t], from rows on both sides of it

  __device__ __forceinline__ float q(int i) const { return toFloat(a.in.q[at + i * a.in.keys]) * a.in.scale; }
  __device__ __forceinline__ float k(int i) const { return toFloat(a.in.k[at + i * a.in.keys]); }
  __device__ __forceinline__ float factor(int i) const { return a.in.g ? expf(toFloat(a.in.g[at + i * a.in.keys])) : fixed; }

  // Forward through the rows: k of those before decays on its way to row i. Rows are a loop, and those before a predicate: as one
  // piece of code for each pair they would fill the registers with what is loaded ahead.
  __device__ __forceinline__ void gradQueries(const float* dWeights) {
    float decayed[Rows], decay = 1.0f;
#pragma unroll
    for (int j = 0; j < Rows; j++) decayed[j] = 0.0f;
#pragma unroll 1
    for (int i = 0; i < rows; i++) {
      const float own = q(i), key = k(i), now = factor(i);
      decay *= now;
      const float state = decay * a.dQueries[at + i * a.in.keys], all = own * state;
      float sum = 0.0f;
#pragma unroll
      for (int j = 0; j < Rows; j++) {
        // q̄·dq̄ passes through a of row i and of all before it; k[j − 1] and those before it on their way to row i, too.
        if (j <= i) through[j] = fmaf(own, sum, through[j] + all);
        decayed[j] = j == i ? key : decayed[j] * now;
        sum = fmaf(dWeights[i * Rows + j], decayed[j], sum);
      }
      if (a.dq) a.dq[at + i * a.in.keys] = fromFloat<T>(a.in.scale * (state + sum));
    }
  }
  // Back through them: q of those after decays on its way to row j.
  __device__ __forceinline__ void gradKeys(const float* dWeights) {
    float decayed[Rows], beyond = 1.0f, now = 1.0f;  // now: a of the row after j
#pragma unroll
    for (int i = 0; i < Rows; i++) decayed[i] = 0.0f;
#pragma unroll 1
    for (int j = rows - 1; j >= 0; j--) {
      const float own = k(j), query = q(j), state = beyond * a.dKeys[at + j * a.in.keys], all = own * state;
      float sum = 0.0f;
#pragma unroll
      for (int i = 0; i < Rows; i++) {
        // k̄·dk̄ passes through a of all rows after j.
        if (i > j) through[i] += all;
        decayed[i] = i == j ? query : decayed[i] * now;
        sum = fmaf(dWeights[i * Rows + j], decayed[i], sum);
      }
      if (a.dk) a.dk[at + j * a.in.keys] = fromFloat<T>(state + sum);
      now = factor(j);
      beyond *= now;
    }
  }
};

// registers: 96
template <class T>
__global__ __launch_bounds__(KeyThreadsMost) void finish(const __grid_constant__ AttentionGrad<T> a) {
  SHARED(float, dWeights);
  const int head = static_cast<int>(blockIdx.x % a.in.heads), n = static_cast<int>(threadIdx.x);
  const Chunk place = chunkAt(a.in, blockIdx.x / a.in.heads);
  for (int i = n; i < Rows * Rows; i += static_cast<int>(blockDim.x)) {
    const bool there = a.dy && i / Rows < place.rows && i % Rows <= i / Rows;  // zero above the diagonal
    dWeights[i] = there ? a.dWeights[a.weightsAt(place.row + i / Rows, head) + i % Rows] : 0.0f;
  }
  __syncthreads();
  if (n >= a.in.key || place.rows == 0) return;
  const int64_t at = a.keyAt(place.row, head) + n;
  KeyRows<T> rows{a, at, place.rows, a.in.decay(head), {}};
  rows.gradQueries(dWeights);
  rows.gradKeys(dWeights);
  if (!a.dg) return;
  const int64_t slot = a.keyAt(place.slot, head) + n;
  const float whole = a.decay[slot] * a.dDecay[slot];
#pragma unroll
  for (int t = 0; t < Rows; t++)
    if (t < place.rows) a.dg[at + t * a.in.keys] = fromFloat<T>(rows.through[t] + whole);
}

constexpr unsigned SpareThreads = 256;

// Zeroes what lies before segment blockIdx.x and in none, and after the last.
// registers: 32
template <class T>
__global__ __launch_bounds__(SpareThreads) void zeroSpare(const __grid_constant__ AttentionGrad<T> a) {
  const int s = static_cast<int>(blockIdx.x);
  const Segment segment = s < a.in.lines ? readSegment(a.in.segments, s) : Segment{};
  if (s < a.in.lines && !isUsed(segment)) return;
  const int64_t begin = endBefore(a.in.segments, s), end = s < a.in.lines ? segment.begin : a.in.rows;
  const auto zero = [&](T* to, int64_t width) {
    if (!to) return;
    for (int64_t i = begin * width + blockIdx.y * SpareThreads + threadIdx.x; i < end * width; i += int64_t{gridDim.y} * SpareThreads)
      to[i] = fromFloat<T>(0.0f);
  };
  zero(a.dq, a.in.keys);
  zero(a.dk, a.in.keys);
  zero(a.dg, a.in.keys);
  zero(a.dv, a.in.values);
}

// The workspace, in floats; the same for both dtypes.
struct Workspace {
  int64_t rows, keys, heads, slots, ends;

  explicit Workspace(const Call& call)
      : rows(call.inputs[3][0]), keys(call.inputs[3][1]), heads(static_cast<int64_t>(call.attributes.number("heads"))),
        slots(rows / Rows + 2 * call.inputs[6][0]), ends(call.inputs[7].elements()) {}
  int64_t line(int i) const { return i * rows * keys; }
  int64_t weights(int i) const { return line(4) + i * rows * heads * Rows; }
  int64_t decay(int i) const { return weights(2) + i * slots * keys; }
  size_t sizeBytes() const { return sizeof(float) * static_cast<size_t>(decay(2) + ends); }
};

template <class T>
void gradAs(const Call& call) {
  const auto [dy, dfinal, q, k, v, g, segments, saved] = call.in<8>();
  const auto [dq, dk, dv, dg, dinitial] = call.out<5>();
  const Workspace workspace(call);
  auto* const at = reinterpret_cast<float*>(call.workspace);
  const Inputs<T> in = inputsOf<T>(call, q, k, v, g, segments);
  const AttentionGrad<T> a{.in = in,
                           .dy = dataOf<T>(dy),
                           .dfinal = dfinal.f32(),
                           .saved = saved.f32(),
                           .dq = dataOf<T>(dq),
                           .dk = dataOf<T>(dk),
                           .dv = dataOf<T>(dv),
                           .dg = dataOf<T>(dg),
                           .dinitial = dinitial.f32(),
                           .blocks = static_cast<int>(ceilDiv(in.value, Columns)),
                           .queries = at + workspace.line(0),
                           .keys = at + workspace.line(1),
                           .dQueries = at + workspace.line(2),
                           .dKeys = at + workspace.line(3),
                           .weights = at + workspace.weights(0),
                           .dWeights = at + workspace.weights(1),
                           .decay = at + workspace.decay(0),
                           .dDecay = at + workspace.decay(1),
                           .ends = at + workspace.decay(2)};
  CudaDevice& device = deviceOf(call);
  const auto perHead = [&](int64_t count) { return static_cast<unsigned>(count * in.heads); };
  const auto bytes = [](int64_t floats) { return static_cast<size_t>(floats) * sizeof(float); };
  const unsigned keyThreads = static_cast<unsigned>(ceilDiv(in.key, 32) * 32);
  launch(device, {perHead(workspace.slots), Threads, bytes(ChunkTile::floats(in.key, 0))}, prepare<T>, a);
  launch(device, {perHead(int64_t{in.lines} * a.blocks), Threads, bytes(in.key * (Line + Columns + 1))}, carryGradient<T>, a);
  launch(device, {perHead(saved[0]), keyThreads, bytes(ColumnTile::floats(static_cast<int>(keyThreads)))}, gradColumns<T>, a);
  launch(device, {perHead(workspace.slots), keyThreads, bytes(Rows * Rows)}, finish<T>, a);
  constexpr unsigned SpareBlocks = 16;
  launch(device, {dim3(static_cast<unsigned>(in.lines + 1), SpareBlocks), SpareThreads}, zeroSpare<T>, a);
}

void linearAttentionGrad(const Call& call) {
  withType(call.inputs[2].dtype, [&]<class T>() { gradAs<T>(call); });
}

std::string limit(const Call& call) {
  const std::string wrong = ops::linearAttentionGradLimit(call);
  if (!wrong.empty()) return wrong;
  const auto heads = static_cast<int64_t>(call.attributes.number("heads"));
  return gridLimit(call.inputs[6], call.inputs[3][0], heads, ceilDiv(call.inputs[4][1] / heads, Columns));
}

KERNEL(linearAttentionGrad, cuda, "dy? dfinal? q k v g? segments saved -> dq dk dv dg dinitial; heads scale retention",
       .run = linearAttentionGrad, .limit = limit, .workspaceBytes = [](const Call& call) { return Workspace(call).sizeBytes(); },
       .checkInputs = ops::checkLinearAttentionGrad)

}  // namespace
}  // namespace selscan::cuda
