// Between rows and patches of rows: fold, patchRows and its gradient. See lib/ops/patches.ts for the equations.
//
// patchRows: a warp takes eight rows and looks for their segments on the way; further blocks take a segment each and leave its
// patch in the slot, in the same launch: no slot that one segment writes is read by another. The gradient has a block for each patch,
// whose rows lie one after another in dy. Words of 16 bytes where the columns of a row are whole ones.
// Bound by memory: a patch is read and its rows are written, twice the bytes of the rows; for decoding by the launch. Not measured on
// a GPU yet.
#include "ops/patches.h"

#include "cuda/launch.cuh"
#include "cuda/segments.cuh"

namespace selscan::cuda {
namespace {

constexpr int Threads = 256, Warps = Threads / 32, RowsPerWarp = 8;

// Tensors in words of a type, and sizes in such words.
template <class Word>
struct Patches {
  const Word* x;  // null: absent
  const int32_t* lines;
  Word *carried, *y;  // null: absent, and nobody reads it
  int64_t segments, rows, dim, width, rowBlocks;

  // Of the patch that line s is in; null: zeros.
  __device__ const Word* wholeOf(int64_t s) const {
    const int32_t* line = lines + 5 * s;
    if (line[2] == 0) return x + s * width;
    return carried && line[3] > 0 ? carried + int64_t{line[3]} * width : nullptr;
  }
};

template <class Word>
__device__ __forceinline__ void spreadRows(const Patches<Word>& patches, int64_t first) {
  const int64_t last = min(patches.rows, first + RowsPerWarp);
  int64_t s = 0;
  for (int64_t row = first; row < last; row++) {
    const SegmentLine segment = segmentFrom(patches.lines, patches.segments, s, row, patches.rows);
    s = segment.index;
    Word* to = patches.y + row * patches.dim;
    const int64_t place = row < segment.begin ? 0 : patches.lines[5 * s + 2] + (row - segment.begin);
    const Word* whole = place > 0 ? patches.wholeOf(s) : nullptr;
    for (int64_t at = laneIndex(); at < patches.dim; at += 32) to[at] = whole ? whole[(place - 1) * patches.dim + at] : Word{};
  }
}

// registers: 40
template <class Word>
__global__ __launch_bounds__(Threads) void spread(const Patches<Word> patches) {
  if (blockIdx.x < patches.rowBlocks) {
    const int64_t first = (int64_t{blockIdx.x} * Warps + warpIndex()) * RowsPerWarp;
    if (first < patches.rows) spreadRows(patches, first);
    return;
  }
  const int64_t s = int64_t{blockIdx.x} - patches.rowBlocks;
  const int32_t* line = patches.lines + 5 * s;
  if (line[0] == line[1] || line[4] == 0) return;
  const Word* whole = patches.wholeOf(s);
  Word* to = patches.carried + int64_t{line[4]} * patches.width;
  if (whole == to) return;
  for (int64_t at = threadIdx.x; at < patches.width; at += Threads) to[at] = whole ? whole[at] : Word{};
}

// A block for each patch: its rows after the first, and zeros.
// registers: 32
template <class Word>
__global__ __launch_bounds__(Threads) void gather(const Word* dy, const int32_t* lines, Word* dx, int64_t dim, int64_t width) {
  const int32_t* line = lines + 5 * int64_t{blockIdx.x};
  const int64_t rows = line[2] == 0 ? line[1] - line[0] : 0, used = rows > 1 ? (rows - 1) * dim : 0;
  const Word* from = dy + (int64_t{line[0]} + 1) * dim;
  Word* to = dx + int64_t{blockIdx.x} * width;
  for (int64_t at = threadIdx.x; at < width; at += Threads) to[at] = at < used ? from[at] : Word{};
}

// Calls body.template operator()<Word>() with the widest word that divides a row of so many floats.
template <class Body>
void withWord(int64_t dim, Body&& body) {
  if (dim % 4 == 0) body.template operator()<uint4>();
  else body.template operator()<unsigned>();
}
template <class Word>
constexpr int64_t FloatsOf = sizeof(Word) / sizeof(float);

void fold(const Call& call) {
  const auto [x] = call.in<1>();
  const auto [y] = call.out<1>();
  if (y && y.data != x.data) deviceOf(call).copy(y.data, x.data, y.sizeBytes());
}

void patchRows(const Call& call) {
  const auto [x, segments, carried] = call.in<3>();
  const auto [y] = call.out<1>();
  const int64_t width = x ? x[1] : carried[1], dim = width / static_cast<int64_t>(call.attributes.number("patch"));
  withWord(dim, [&, x = x, segments = segments, carried = carried, y = y]<class Word>() {
    constexpr int64_t Floats = FloatsOf<Word>;
    const int64_t rows = y ? y[0] : 0, rowBlocks = ceilDiv(rows, Warps * RowsPerWarp);
    const Patches<Word> patches{dataOf<Word>(x), segments.i32(), dataOf<Word>(carried), dataOf<Word>(y),
                                segments[0], rows, dim / Floats, width / Floats, rowBlocks};
    const int64_t blocks = rowBlocks + (carried ? segments[0] : 0);
    launch(deviceOf(call), {static_cast<unsigned>(blocks), Threads}, spread<Word>, patches);
  });
}

void patchRowsGrad(const Call& call) {
  const auto [dy, segments] = call.in<2>();
  const auto [dx] = call.out<1>();
  if (!dx) return;
  withWord(dy[1], [&, dy = dy, segments = segments, dx = dx]<class Word>() {
    constexpr int64_t Floats = FloatsOf<Word>;
    launch(deviceOf(call), {static_cast<unsigned>(segments[0]), Threads}, gather<Word>, dataOf<Word>(dy), segments.i32(),
           dataOf<Word>(dx), dy[1] / Floats, dx[1] / Floats);
  });
}

KERNEL(fold, cuda, "x -> y; width", .run = fold, .limit = ops::foldLimit, .inPlace = {{0, 0}})
KERNEL(patchRows, cuda, "x? segments carried?* -> y; rows patch", .run = patchRows, .limit = ops::patchRowsLimit,
       .checkInputs = ops::checkPatchRows)
KERNEL(patchRowsGrad, cuda, "dy segments -> dx; patch", .run = patchRowsGrad, .limit = ops::patchRowsGradLimit,
       .checkInputs = ops::checkPatchRowsGrad)

}  // namespace
}  // namespace selscan::cuda
