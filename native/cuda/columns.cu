// Moving columns and rows about: split, concat, gatherRows and its gradient. See lib/ops/columns.ts.
//
// Copies go by the widest word that divides every width, whatever the elements are; a thread moves four rows' words, a block
// 256 columns of words or, of narrow matrices, more rows. scatterRows sorts each tile of 256 picks by row; then a warp takes a
// row, each of its lanes looks for the row in one tile, and what they find is added tile by tile: in the order of the picks,
// with no walk over all of them.
// Bound by memory: twice the bytes that move; scatterRows writes every row and reads the picks. Not measured on a GPU yet.
#include <algorithm>

#include "cuda/block.cuh"
#include "cuda/launch.cuh"
#include "ops/columns.h"

namespace selscan::cuda {
namespace {

constexpr int Threads = 256, RowsInFlight = 4;
constexpr int64_t GridMax = 65535;  // of y; beyond it blocks stride

// move.load(row, column) → move.store(row, column, word) for all words of a matrix. 2^columnBits threads stand in a row.
// registers: 64
template <class Word, class Move>
__global__ __launch_bounds__(Threads) void moveWords(int64_t rows, int64_t words, int columnBits, Move move) {
  const int lineRows = Threads >> columnBits, line = static_cast<int>(threadIdx.x) >> columnBits;
  const int64_t left = static_cast<int64_t>(threadIdx.x) & ((1 << columnBits) - 1);
  const int64_t first = int64_t{blockIdx.x} * RowsInFlight * lineRows + line;
  for (int64_t column = (int64_t{blockIdx.y} << columnBits) + left; column < words; column += int64_t{gridDim.y} << columnBits) {
    Word held[RowsInFlight] = {};
#pragma unroll
    for (int i = 0; i < RowsInFlight; i++)
      if (first + i * lineRows < rows) held[i] = move.load(first + i * lineRows, column);
#pragma unroll
    for (int i = 0; i < RowsInFlight; i++)
      if (first + i * lineRows < rows) move.store(first + i * lineRows, column, held[i]);
  }
}

template <class Word, class Move>
void launchWords(CudaDevice& device, int64_t rows, int64_t words, const Move& move) {
  int columnBits = 0;
  while ((1 << columnBits) < Threads && (1 << columnBits) < words) columnBits++;
  const int64_t blocks = ceilDiv(rows, int64_t{RowsInFlight} * (Threads >> columnBits));
  const int64_t across = std::min(GridMax, ceilDiv(words, int64_t{1} << columnBits));
  const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(across));
  launch(device, {grid, Threads}, moveWords<Word, Move>, rows, words, columnBits, move);
}

// Calls body.template operator()<Word>() with the widest word of which all of these are multiples, in bytes.
template <class Body>
void withWord(std::initializer_list<int64_t> widths, Body&& body) {
  const auto divides = [&](int64_t bytes) {
    return std::all_of(widths.begin(), widths.end(), [=](int64_t width) { return width % bytes == 0; });
  };
  if (divides(16)) body.template operator()<uint4>();
  else if (divides(8)) body.template operator()<uint2>();
  else if (divides(4)) body.template operator()<unsigned>();
  else body.template operator()<unsigned short>();
}

template <class Word>
struct Split {
  const Word* x;
  Word *a, *b;  // null where nobody reads it
  int64_t first, second;
  __device__ Word load(int64_t row, int64_t column) const { return x[row * (first + second) + column]; }
  __device__ void store(int64_t row, int64_t column, Word word) const {
    if (column < first && a) a[row * first + column] = word;
    if (column >= first && b) b[row * second + column - first] = word;
  }
};
void split(const Call& call) {
  const auto [x] = call.in<1>();
  const auto [a, b] = call.out<2>();
  if (!a && !b) return;
  const int64_t size = static_cast<int64_t>(sizeBytes(x.dtype)), rows = x[0], width = x[1] * size;
  const int64_t first = static_cast<int64_t>(call.attributes.number("first")) * size;
  withWord({first, width}, [&, x = x, a = a, b = b]<class Word>() {
    constexpr int64_t Bytes = sizeof(Word);
    launchWords<Word>(deviceOf(call), rows, width / Bytes,
                      Split<Word>{dataOf<Word>(x), dataOf<Word>(a), dataOf<Word>(b), first / Bytes, (width - first) / Bytes});
  });
}

template <class Word>
struct Concat {
  const Word *a, *b;  // null: zeros
  Word* y;
  int64_t first, second;
  __device__ Word load(int64_t row, int64_t column) const {
    if (column < first) return a ? a[row * first + column] : Word{};
    return b ? b[row * second + column - first] : Word{};
  }
  __device__ void store(int64_t row, int64_t column, Word word) const { y[row * (first + second) + column] = word; }
};
void concat(const Call& call) {
  const auto [a, b] = call.in<2>();
  const auto [y] = call.out<1>();
  if (!y) return;
  const int64_t size = static_cast<int64_t>(sizeBytes(y.dtype)), rows = y[0], width = y[1] * size;
  const int64_t first = static_cast<int64_t>(call.attributes.number("first")) * size;
  withWord({first, width}, [&, a = a, b = b, y = y]<class Word>() {
    constexpr int64_t Bytes = sizeof(Word);
    launchWords<Word>(deviceOf(call), rows, width / Bytes,
                      Concat<Word>{dataOf<Word>(a), dataOf<Word>(b), dataOf<Word>(y), first / Bytes, (width - first) / Bytes});
  });
}

template <class Word>
struct Gather {
  const Word* x;
  const int32_t* index;
  Word* y;
  int64_t words;
  __device__ Word load(int64_t pick, int64_t column) const {
    const int64_t row = index[pick];
    return row < 0 ? Word{} : x[row * words + column];
  }
  __device__ void store(int64_t pick, int64_t column, Word word) const { y[pick * words + column] = word; }
};
void gatherRows(const Call& call) {
  const auto [x, index] = call.in<2>();
  const auto [y] = call.out<1>();
  if (!y) return;
  const int64_t picks = y[0], width = y[1] * static_cast<int64_t>(sizeBytes(y.dtype));
  withWord({width}, [&, x = x, index = index, y = y]<class Word>() {
    const int64_t words = width / static_cast<int64_t>(sizeof(Word));
    launchWords<Word>(deviceOf(call), picks, words, Gather<Word>{dataOf<Word>(x), index.i32(), dataOf<Word>(y), words});
  });
}

constexpr int Tile = 256;
static_assert(Tile == Threads, "a thread ranks one pick of its tile");

// A tile's picks by rising row, those of one row in their order. Picks of nothing, −1, come last.
struct Sorted {
  uint32_t* rows;  // (tiles, Tile)
  int32_t* picks;  // (tiles, Tile), numbers within the tile
};

// registers: 32
__global__ __launch_bounds__(Threads) void sortPicks(const int32_t* index, int64_t picks, Sorted sorted) {
  SHARED(uint32_t, rows);  // (Tile)
  const int own = static_cast<int>(threadIdx.x);
  const int64_t begin = int64_t{blockIdx.x} * Tile;
  const uint32_t row = begin + own < picks ? static_cast<uint32_t>(index[begin + own]) : ~0u;
  rows[own] = row;
  __syncthreads();
  int rank = 0;
#pragma unroll 8
  for (int other = 0; other < Tile; other++) rank += rows[other] < row || (rows[other] == row && other < own);
  sorted.rows[begin + rank] = row;
  sorted.picks[begin + rank] = own;
}

// Where the row's picks begin in a tile; Tile or another row's place when there are none.
__device__ __forceinline__ int lowerBound(const uint32_t* rows, uint32_t row) {
  int begin = 0;
#pragma unroll
  for (int step = Tile / 2; step > 0; step /= 2)
    if (rows[begin + step - 1] < row) begin += step;
  return begin + (rows[begin] < row);
}

// dx[row] = Σ dy of its picks. A warp has a row and 32·N of its columns; N > 1 where N divides dim.
// registers: 32
template <class T, int N>
__global__ __launch_bounds__(Threads) void addPicks(Sorted sorted, int64_t tiles, const T* dy, int64_t rows, int64_t dim, T* dx) {
  const int64_t row = int64_t{blockIdx.x} * (Threads / 32) + warpIndex();
  if (row >= rows) return;  // the whole warp; there are no barriers
  for (int64_t left = int64_t{blockIdx.y} * 32 * N; left < dim; left += int64_t{gridDim.y} * 32 * N) {
    const int64_t column = left + laneIndex() * N;
    float sum[N] = {};
    for (int64_t first = 0; first < tiles; first += 32) {
      const int64_t own = first + laneIndex();
      int at = Tile;
      if (own < tiles) at = lowerBound(sorted.rows + own * Tile, static_cast<uint32_t>(row));
      const bool found = at < Tile && sorted.rows[own * Tile + at] == static_cast<uint32_t>(row);
      for (unsigned having = __ballot_sync(~0u, found); having != 0; having &= having - 1) {
        const int lane = __ffs(static_cast<int>(having)) - 1;
        const int64_t tile = (first + lane) * Tile;
        for (int i = __shfl_sync(~0u, at, lane); i < Tile && sorted.rows[tile + i] == static_cast<uint32_t>(row); i++) {
          if (column >= dim) continue;
          float values[N];
          loadVec<N>(dy + (tile + sorted.picks[tile + i]) * dim + column, values);
#pragma unroll
          for (int k = 0; k < N; k++) sum[k] += values[k];
        }
      }
    }
    if (column < dim) storeGlobal<N>(dx + row * dim + column, sum);
  }
}

void scatterRows(const Call& call) {
  const auto [dy, index] = call.in<2>();
  const auto [dx] = call.out<1>();
  if (!dx) return;
  CudaDevice& device = deviceOf(call);
  const int64_t picks = dy[0], tiles = ceilDiv(picks, Tile), rows = dx[0], dim = dx[1];
  uint32_t* sortedRows = reinterpret_cast<uint32_t*>(call.workspace);
  const Sorted sorted{sortedRows, reinterpret_cast<int32_t*>(sortedRows + tiles * Tile)};
  launch(device, {static_cast<unsigned>(tiles), Threads, Tile * sizeof(uint32_t)}, sortPicks, index.i32(), picks, sorted);
  withType(dx.dtype, [&, dy = dy, dx = dx]<class T>() {
    const auto add = [&]<int N>() {
      const int64_t across = std::min(GridMax, ceilDiv(dim, 32 * N));
      const dim3 grid(static_cast<unsigned>(ceilDiv(rows, Threads / 32)), static_cast<unsigned>(across));
      launch(device, {grid, Threads}, addPicks<T, N>, sorted, tiles, dataOf<T>(dy), rows, dim, dataOf<T>(dx));
    };
    constexpr int N = 16 / sizeof(T);
    if (dim % N == 0) add.template operator()<N>();
    else add.template operator()<1>();
  });
}
size_t scatterBytes(const Call& call) {
  return static_cast<size_t>(ceilDiv(call.inputs[0][0], Tile) * Tile) * (sizeof(uint32_t) + sizeof(int32_t));
}

KERNEL(split, cuda, "x -> a b; first", .run = split, .limit = ops::splitLimit)
KERNEL(concat, cuda, "a? b? -> y; first second", .run = concat, .limit = ops::concatLimit)
KERNEL(gatherRows, cuda, "x index -> y", .run = gatherRows, .limit = ops::gatherLimit, .checkInputs = ops::checkGather)
KERNEL(scatterRows, cuda, "dy index -> dx; rows", .run = scatterRows, .limit = ops::scatterLimit, .workspaceBytes = scatterBytes,
       .checkInputs = ops::checkScatter)

}  // namespace
}  // namespace selscan::cuda
