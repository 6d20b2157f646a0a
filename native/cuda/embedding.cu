// Embedding: rows of a table by id, and the table's gradient. See lib/ops/embedding.ts.
//
// Forward: a warp copies 512 columns of a row. Bound by memory: 8 bytes an element, 6 from a bf16 table.
// Gradient: the rows are sorted by id, stably, by one radix pass for each 8 bits of the vocabulary (bytes take one); then the
// rows of each id are added in row order, in chunks of 64 counted from the id's first row, and the chunks in an order that
// their number decides: the same bits for any other ids around. Chunks belong to the window of 16 sorted rows in which they
// begin, so that a frequent byte is many warps' work; ids of one chunk are finished there, the others leave its sum to a last
// kernel, whose block takes 8 warps to each of them. Ids without rows get their zeros in it.
// The sums are bound by memory: 4 bytes an element of dy and of the table. The sort moves 20 bytes a row and pass, and its
// scan is one block's. Not measured on a GPU yet.
#include "cuda/block.cuh"
#include "cuda/launch.cuh"
#include "ops/embedding.h"

namespace selscan::cuda {
namespace {

constexpr unsigned Threads = 256;
constexpr int Warps = Threads / 32, Vector = 4;

// Columns [left, left + 32·N·Vectors) of a row are one warp's; lane l has N from left + (32·i + l)·N on.
template <int N>
__device__ __forceinline__ int64_t columnAt(int64_t left, int i) {
  return left + (32 * i + laneIndex()) * N;
}

constexpr int Copies = 4;  // vectors of a lane, all under way together
template <int N>
constexpr int64_t CopyWidth = 32 * N * Copies;

// y's row: zero for id −1. An id that was computed on the way and lies outside the table gives NaN, which nobody overlooks.
// registers: 40
template <class T, int N>
__global__ __launch_bounds__(Threads) void copyRows(const int32_t* ids, const T* weight, int64_t rows, int64_t vocab, int64_t dim,
                                                    int64_t pieces, float* y) {
  const int64_t warp = int64_t{blockIdx.x} * Warps + warpIndex(), row = warp / pieces;
  if (row >= rows) return;
  const int64_t left = warp % pieces * CopyWidth<N>, id = ids[row];
  const bool inside = id >= 0 && id < vocab;
  float value[Copies][N];
#pragma unroll
  for (int i = 0; i < Copies; i++) {
#pragma unroll
    for (int k = 0; k < N; k++) value[i][k] = id == -1 ? 0.0f : NAN;
    if (inside && columnAt<N>(left, i) < dim) loadVec<N>(weight + id * dim + columnAt<N>(left, i), value[i]);
  }
#pragma unroll
  for (int i = 0; i < Copies; i++)
    if (columnAt<N>(left, i) < dim) storeGlobal<N>(y + row * dim + columnAt<N>(left, i), value[i]);
}

void embedding(const Call& call) {
  const auto [ids, weight, scales] = call.in<3>();
  const auto [y] = call.out<1>();
  if (!y) return;
  const int64_t rows = ids[0], vocab = weight[0], dim = weight[1];
  const int64_t pieces = ceilDiv(dim, dim % Vector == 0 ? CopyWidth<Vector> : CopyWidth<1>);
  const Grid grid{static_cast<unsigned>(ceilDiv(rows * pieces, Warps)), Threads};
  withType(weight.dtype, [&, ids = ids, weight = weight, y = y]<class T>() {
    launch(deviceOf(call), grid, dim % Vector == 0 ? copyRows<T, Vector> : copyRows<T, 1>, ids.i32(), dataOf<T>(weight), rows,
           vocab, dim, pieces, y.f32());
  });
}

constexpr int DigitBits = 8, Digits = 1 << DigitBits;
constexpr int SortWarps = 4;            // of a block; each has a tile and the counts of its digits
constexpr int64_t TilesMost = 256;      // bounds the counts, and with them the scan
constexpr int ScanThreads = 1024, ScanItems = 4;
constexpr int ChunkRows = 64, WindowRows = 16;

// How the sort is cut, from shapes alone, and where things lie in the workspace (in words of 4 bytes).
struct SortPlan {
  int64_t rows, vocab, dim, tileRows = 256;
  int passes = 1;

  SortPlan(int64_t rows, int64_t vocab, int64_t dim) : rows(rows), vocab(vocab), dim(dim) {
    while (ceilDiv(rows, tileRows) > TilesMost) tileRows *= 2;
    while (passes < 4 && (vocab - 1) >> (DigitBits * passes) > 0) passes++;
  }
  int64_t tiles() const { return ceilDiv(rows, tileRows); }
  int64_t sums() const { return 0; }  // (⌈rows/64⌉, 2, dim): chunks of ids that have several
  int64_t keys(int pass) const { return 2 * ceilDiv(rows, ChunkRows) * dim + pass % 2 * 2 * rows; }
  int64_t order(int pass) const { return keys(pass) + rows; }
  int64_t counts() const { return keys(0) + (passes > 1 ? 4 : 2) * rows; }  // (Digits, tiles), then scanned in place
  int64_t total() const { return counts() + Digits * tiles(); }             // how many rows have an id inside the table
  int64_t starts() const { return total() + 1; }                            // (vocab + 1)
  size_t sizeBytes() const { return sizeof(int32_t) * static_cast<size_t>(starts() + vocab + 1); }
};

// Rows before a pass: of the first one all, in their order, and those with an id outside the table are left out by it.
struct SortInput {
  const int32_t *keys, *order, *total;  // order: null in the first pass
  int64_t rows, vocab, tileRows, tiles;
  int shift;
  __device__ int64_t count() const { return order ? *total : rows; }
};

// Which lanes hold the same digit as this one: 8 ballots. Lanes without a row are no one's peers.
__device__ __forceinline__ unsigned peersOf(int digit, bool valid) {
  unsigned peers = __ballot_sync(~0u, valid);
#pragma unroll
  for (int bit = 0; bit < DigitBits; bit++) {
    const bool set = digit >> bit & 1;
    const unsigned ones = __ballot_sync(~0u, set);
    peers &= set ? ones : ~ones;
  }
  return valid ? peers : 0;
}

// Goes over a warp's tile, 32 rows at a time, in order: place(row's index, key, its rank in the tile among those of its digit).
// `counts` are the warp's, one for each digit, zeros before.
template <class Place>
__device__ __forceinline__ void overTile(const SortInput& in, int64_t tile, int* counts, Place place) {
  const int64_t end = min(in.count(), (tile + 1) * in.tileRows);
  for (int64_t first = tile * in.tileRows; first < end; first += 32) {
    const int64_t at = first + laneIndex();
    const int key = at < end ? in.keys[at] : -1;
    const bool valid = key >= 0 && key < in.vocab;
    const int digit = key >> in.shift & (Digits - 1);
    const unsigned peers = peersOf(digit, valid);
    const int earlier = __popc(peers & ((1u << laneIndex()) - 1));
    const int before = valid ? counts[digit] : 0;
    __syncwarp();
    if (valid && earlier == 0) counts[digit] = before + __popc(peers);
    __syncwarp();
    if (valid) place(at, key, digit, before + earlier);
  }
}

// registers: 48
__global__ __launch_bounds__(SortWarps * 32) void countDigits(SortInput in, int32_t* counts) {
  SHARED(int, shared);
  int* const own = shared + warpIndex() * Digits;
  const int64_t tile = int64_t{blockIdx.x} * SortWarps + warpIndex();
  if (tile >= in.tiles) return;  // whole warps, which share nothing
  for (int digit = laneIndex(); digit < Digits; digit += 32) own[digit] = 0;
  __syncwarp();
  overTile(in, tile, own, [](int64_t, int, int, int) {});
  for (int digit = laneIndex(); digit < Digits; digit += 32) counts[digit * in.tiles + tile] = own[digit];
}

// counts[i] = Σ of those before i, and their total. One block goes over them.
// registers: 40
__global__ __launch_bounds__(ScanThreads) void scanCounts(int32_t* counts, int64_t count, int32_t* total) {
  SHARED(int, sums);
  int before = 0;
  for (int64_t first = 0; first < count; first += ScanThreads * ScanItems) {
    const int64_t at = first + int64_t{threadIdx.x} * ScanItems;
    int item[ScanItems], own = 0;
#pragma unroll
    for (int i = 0; i < ScanItems; i++) {
      item[i] = at + i < count ? counts[at + i] : 0;
      own += item[i];
    }
    int upTo = own;  // Σ of this warp's lanes up to this one
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
      const int other = __shfl_up_sync(~0u, upTo, distance);
      if (laneIndex() >= distance) upTo += other;
    }
    if (laneIndex() == 31) sums[warpIndex()] = upTo;
    __syncthreads();
    const int ofWarp = sums[laneIndex()];
    const int earlier = overWarp(Sum{}, laneIndex() < warpIndex() ? ofWarp : 0);
    int running = before + earlier + upTo - own;
    before += overWarp(Sum{}, ofWarp);
#pragma unroll
    for (int i = 0; i < ScanItems; i++) {
      if (at + i < count) counts[at + i] = running;
      running += item[i];
    }
    __syncthreads();
  }
  if (total && threadIdx.x == 0) *total = before;
}

// registers: 48
__global__ __launch_bounds__(SortWarps * 32) void placeRows(SortInput in, const int32_t* starts, int32_t* keys, int32_t* order) {
  SHARED(int, shared);
  int* const own = shared + warpIndex() * Digits;
  const int64_t tile = int64_t{blockIdx.x} * SortWarps + warpIndex();
  if (tile >= in.tiles) return;  // whole warps, which share nothing
  for (int digit = laneIndex(); digit < Digits; digit += 32) own[digit] = starts[digit * in.tiles + tile];
  __syncwarp();
  overTile(in, tile, own, [&](int64_t at, int key, int, int position) {
    keys[position] = key;
    order[position] = in.order ? in.order[at] : static_cast<int32_t>(at);
  });
}

// starts[id]: the first sorted row whose id is not smaller.
// registers: 32
__global__ __launch_bounds__(Threads) void findStarts(const int32_t* keys, const int32_t* total, int64_t vocab, int32_t* starts) {
  const int64_t id = int64_t{blockIdx.x} * Threads + threadIdx.x;
  if (id > vocab) return;
  int low = 0, high = *total;
  while (low < high) {
    const int middle = low + (high - low) / 2;
    if (keys[middle] < id) low = middle + 1;
    else high = middle;
  }
  starts[id] = low;
}

// What the two kernels that add rows are given.
struct Rows {
  const float* dy;
  const int32_t *keys, *order, *starts, *total;
  int64_t vocab, dim, pieces;  // a warp has 32·N columns
  float *sums, *dweight;

  // Where the chunk that begins at sorted row `at` leaves its sum. Two chunks of ids that have several never meet: whole ones
  // begin 64 rows apart at least, and so do short ones, each of which follows a whole one.
  __device__ float* sumAt(int64_t at, bool whole) const { return sums + (at / ChunkRows * 2 + (whole ? 0 : 1)) * dim; }
};

// registers: 64
template <int N>
__global__ __launch_bounds__(Threads) void addChunks(Rows rows, int64_t windows) {
  const int64_t warp = int64_t{blockIdx.x} * Warps + warpIndex(), window = warp / rows.pieces;
  if (window >= windows) return;
  const int64_t column = columnAt<N>(warp % rows.pieces * 32 * N, 0), total = *rows.total;
  const int64_t last = min(total, (window + 1) * WindowRows);
  if (column >= rows.dim) return;
  for (int64_t at = window * WindowRows; at < last;) {
    const int id = rows.keys[at];
    const int64_t start = rows.starts[id], end = rows.starts[id + 1], chunk = start + (at - start) / ChunkRows * ChunkRows;
    if (chunk < at) {  // begins in an earlier window
      at = min(end, chunk + ChunkRows);
      continue;
    }
    const int64_t to = min(end, at + ChunkRows);
    float sum[N] = {};
#pragma unroll 4
    for (int64_t row = at; row < to; row++) {
      float dy[N];
      loadVec<N>(rows.dy + int64_t{rows.order[row]} * rows.dim + column, dy);
#pragma unroll
      for (int k = 0; k < N; k++) sum[k] += dy[k];
    }
    float* const into = end - start <= ChunkRows ? rows.dweight + id * rows.dim : rows.sumAt(at, to - at == ChunkRows);
    storeVec<N>(into + column, sum);
    at = to;
  }
}

// The ids that addChunks did not finish: a block has 32·N columns of 8 ids. Warp w adds chunks w, w + 8, …; the warps' sums are
// then added in rising order.
// registers: 64
template <int N>
__global__ __launch_bounds__(Threads) void finishIds(Rows rows) {
  SHARED(float, shared);  // (Warps, 32·N)
  const int64_t left = blockIdx.x % rows.pieces * 32 * N, first = blockIdx.x / rows.pieces * Warps;
  const int64_t column = columnAt<N>(left, 0), own = first + warpIndex();
  const bool active = column < rows.dim;
  if (own < rows.vocab && rows.starts[own] == rows.starts[own + 1] && active) {
    const float zeros[N] = {};
    storeGlobal<N>(rows.dweight + own * rows.dim + column, zeros);
  }
  for (int64_t id = first; id < min(rows.vocab, first + Warps); id++) {
    const int64_t start = rows.starts[id], end = rows.starts[id + 1];
    if (end - start <= ChunkRows) continue;  // the same for all threads of the block
    float sum[N] = {};
    if (active) {
#pragma unroll 4
      for (int64_t at = start + warpIndex() * ChunkRows; at < end; at += Warps * ChunkRows) {
        float chunk[N];
        loadVec<N>(rows.sumAt(at, end - at >= ChunkRows) + column, chunk);
#pragma unroll
        for (int k = 0; k < N; k++) sum[k] += chunk[k];
      }
    }
    storeVec<N>(shared + threadIdx.x * N, sum);
    __syncthreads();
    if (warpIndex() == 0 && active) {
#pragma unroll
      for (int warp = 1; warp < Warps; warp++) {
        float other[N];
        loadVec<N>(shared + (warp * 32 + laneIndex()) * N, other);
#pragma unroll
        for (int k = 0; k < N; k++) sum[k] += other[k];
      }
      storeGlobal<N>(rows.dweight + id * rows.dim + column, sum);
    }
    __syncthreads();
  }
}

template <int N>
void addRows(CudaDevice& device, Rows rows, int64_t count) {
  rows.pieces = ceilDiv(rows.dim, 32 * N);
  const int64_t windows = ceilDiv(count, WindowRows);
  launch(device, {static_cast<unsigned>(ceilDiv(windows * rows.pieces, Warps)), Threads}, addChunks<N>, rows, windows);
  const Grid grid{static_cast<unsigned>(ceilDiv(rows.vocab, Warps) * rows.pieces), Threads, Threads * N * sizeof(float)};
  launch(device, grid, finishIds<N>, rows);
}

void embeddingGrad(const Call& call) {
  const auto [dy, ids] = call.in<2>();
  const auto [dweight] = call.out<1>();
  if (!dweight) return;
  CudaDevice& device = deviceOf(call);
  const SortPlan plan(ids[0], dweight[0], dweight[1]);
  int32_t* const words = reinterpret_cast<int32_t*>(call.workspace);
  int32_t *const counts = words + plan.counts(), *const total = words + plan.total(), *const starts = words + plan.starts();
  const Grid grid{static_cast<unsigned>(ceilDiv(plan.tiles(), SortWarps)), SortWarps * 32, SortWarps * Digits * sizeof(int)};
  for (int pass = 0; pass < plan.passes; pass++) {
    const bool first = pass == 0;
    const SortInput in{first ? ids.i32() : words + plan.keys(pass - 1), first ? nullptr : words + plan.order(pass - 1), total,
                       plan.rows, plan.vocab, plan.tileRows, plan.tiles(), DigitBits * pass};
    launch(device, grid, countDigits, in, counts);
    launch(device, {1u, ScanThreads, WarpMax * sizeof(int)}, scanCounts, counts, Digits * plan.tiles(), first ? total : nullptr);
    launch(device, grid, placeRows, in, counts, words + plan.keys(pass), words + plan.order(pass));
  }
  const int last = plan.passes - 1;
  const int32_t* const keys = words + plan.keys(last);
  launch(device, {static_cast<unsigned>(ceilDiv(plan.vocab + 1, Threads)), Threads}, findStarts, keys, total, plan.vocab, starts);
  const Rows rows{dy.f32(), keys, words + plan.order(last), starts, total, plan.vocab, plan.dim, 0,
                  reinterpret_cast<float*>(words + plan.sums()), dweight.f32()};
  if (plan.dim % Vector == 0) addRows<Vector>(device, rows, plan.rows);
  else addRows<1>(device, rows, plan.rows);
}

// Sorted rows are 32-bit numbers.
std::string gradLimit(const Call& call) {
  constexpr int64_t RowsMost = 0x7fffffff;
  const std::string wrong = ops::embeddingGradLimit(call);
  if (!wrong.empty()) return wrong;
  for (const auto& [size, what] : {std::pair{call.inputs[1][0], "rows"}, std::pair{call.outputs[0][0], "vocab"}})
    if (size > RowsMost) return std::string(what) + " is below 2^31, got " + std::to_string(size);
  return {};
}

KERNEL(embedding, cuda, "ids weight scales? -> y", .run = embedding, .limit = ops::embeddingLimit, .checkInputs = ops::checkEmbedding)
KERNEL(embeddingGrad, cuda, "dy ids -> dweight; vocab", .run = embeddingGrad, .limit = gradLimit,
       .workspaceBytes = [](const Call& call) {
         const Tensor &dy = call.inputs[0], &dweight = call.outputs[0];
         return SortPlan(dy[0], dweight[0], dy[1]).sizeBytes();
       },
       .checkInputs = ops::checkEmbeddingGrad)

}  // namespace
}  // namespace selscan::cuda
