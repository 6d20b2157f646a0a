// Between rows and patches of rows: fold, patchRows and its gradient. See lib/ops/patches.ts for the equations.
//
// Segments over the threads: a segment is one patch, and its rows are copies of the blocks of one row. No row or slot is written by
// two segments, and none that one writes is read by another. Bound by memory.
#include <algorithm>
#include <cstring>

#include "core/kernel.h"
#include "cpu/spare_rows.h"
#include "cpu/threads.h"
#include "ops/patches.h"

namespace selscan::cpu {
namespace {

size_t bytesOf(int64_t floats) { return static_cast<size_t>(floats) * sizeof(float); }

void fold(const Call& call) {
  const auto [x] = call.in<1>();
  const auto [y] = call.out<1>();
  if (!y || y.data == x.data) return;
  constexpr int64_t Piece = 1 << 18;  // bytes of a task
  const auto bytes = static_cast<int64_t>(y.sizeBytes());
  parallel((bytes + Piece - 1) / Piece, [=, from = x.data, to = y.data](int64_t piece) {
    const int64_t at = piece * Piece;
    std::memcpy(to + at, from + at, static_cast<size_t>(std::min(Piece, bytes - at)));
  });
}

void patchRows(const Call& call) {
  const auto [x, segments, carried] = call.in<3>();
  const auto [y] = call.out<1>();
  const int64_t width = x ? x[1] : carried[1], dim = width / static_cast<int64_t>(call.attributes.number("patch"));
  const float* begun = x.f32();
  float *slots = carried.f32(), *rows = y.f32();
  parallel(segments[0], [=, lines = segments.i32()](int64_t s) {
    const Segment segment = segmentAt(lines, s);
    if (segment.begin == segment.end) return;
    const float* whole = segment.position == 0 ? begun + s * width : slots && segment.from > 0 ? slots + segment.from * width : nullptr;
    for (int64_t row = segment.begin; rows && row < segment.end; row++) {
      const int64_t place = segment.position + (row - segment.begin);
      if (place == 0 || whole == nullptr) std::memset(rows + row * dim, 0, bytesOf(dim));
      else std::memcpy(rows + row * dim, whole + (place - 1) * dim, bytesOf(dim));
    }
    if (slots == nullptr || segment.to == 0) return;
    float* to = slots + segment.to * width;
    if (whole == nullptr) std::memset(to, 0, bytesOf(width));
    else if (whole != to) std::memcpy(to, whole, bytesOf(width));
  });
  if (y) zeroSpareRows(segments, y[0], dim, rows);
}

void patchRowsGrad(const Call& call) {
  const auto [dy, segments] = call.in<2>();
  const auto [dx] = call.out<1>();
  if (!dx) return;
  const int64_t dim = dy[1], width = dx[1];
  parallel(segments[0], [=, from = dy.f32(), to = dx.f32(), lines = segments.i32()](int64_t s) {
    const Segment segment = segmentAt(lines, s);
    // The row at position 0 takes no part.
    const int64_t rows = segment.position == 0 ? segment.end - segment.begin : 0, used = std::max<int64_t>(0, rows - 1) * dim;
    float* line = to + s * width;
    if (used > 0) std::memcpy(line, from + (int64_t{segment.begin} + 1) * dim, bytesOf(used));
    std::memset(line + used, 0, bytesOf(width - used));
  });
}

KERNEL(fold, cpu, "x -> y; width", .run = fold, .limit = ops::foldLimit, .inPlace = {{0, 0}})
KERNEL(patchRows, cpu, "x? segments carried?* -> y; rows patch", .run = patchRows, .limit = ops::patchRowsLimit,
       .checkInputs = ops::checkPatchRows)
KERNEL(patchRowsGrad, cpu, "dy segments -> dx; patch", .run = patchRowsGrad, .limit = ops::patchRowsGradLimit,
       .checkInputs = ops::checkPatchRowsGrad)

}  // namespace
}  // namespace selscan::cpu
