// Token shift, forward and backward. See lib/ops/token-shift.ts.
//
// Blocks of rows over the threads; copies, bound by memory. Forward, a segment's first row reads its slot before any slot is
// written: a slot may be read and written in the same run, though by one segment alone.
#include <algorithm>
#include <cstring>

#include "core/kernel.h"
#include "cpu/spare_rows.h"
#include "cpu/threads.h"
#include "ops/token_shift.h"

namespace selscan::cpu {
namespace {

constexpr int64_t RowBlock = 32;

// from null: zeros.
void copy(float* to, const float* from, int64_t count) {
  const size_t bytes = static_cast<size_t>(count) * sizeof(float);
  from ? std::memcpy(to, from, bytes) : std::memset(to, 0, bytes);
}

void tokenShift(const Call& call) {
  const auto [x, segments, carried] = call.in<3>();
  const auto [y] = call.out<1>();
  const int64_t rows = x[0], dim = x[1], half = ops::shiftedColumns(dim), kept = dim - half;
  const float* from = x.f32();
  float *to = y.f32(), *slots = carried.f32();
  if (to) {
    overSegmentRows(segments, rows, RowBlock, [=](const Segment& segment, int64_t row) {
      const float* slot = slots && segment.from > 0 ? slots + segment.from * half : nullptr;
      copy(to + row * dim, from + row * dim, kept);
      copy(to + row * dim + kept, row > segment.begin ? from + (row - 1) * dim + kept : slot, half);
    });
    zeroSpareRows(segments, rows, dim, to);
  }
  if (!slots) return;
  for (int64_t s = 0; s < segments[0]; s++) {
    const Segment segment = segmentAt(segments.i32(), s);
    if (segment.begin == segment.end || segment.to == 0) continue;
    copy(slots + segment.to * half, from + (int64_t{segment.end} - 1) * dim + kept, half);
  }
}

void tokenShiftGrad(const Call& call) {
  const auto [dy, segments] = call.in<2>();
  const auto [dx] = call.out<1>();
  if (!dx) return;
  const int64_t rows = dy[0], dim = dy[1], half = ops::shiftedColumns(dim), kept = dim - half;
  const float* from = dy.f32();
  float* to = dx.f32();
  overSegmentRows(segments, rows, RowBlock, [=](const Segment& segment, int64_t row) {
    copy(to + row * dim, from + row * dim, kept);
    copy(to + row * dim + kept, row + 1 < segment.end ? from + (row + 1) * dim + kept : nullptr, half);
  });
  zeroSpareRows(segments, rows, dim, to);
}

KERNEL(tokenShift, cpu, "x segments carried?* -> y", .run = tokenShift, .limit = ops::shiftLimit, .checkInputs = ops::checkShift)
KERNEL(tokenShiftGrad, cpu, "dy segments -> dx", .run = tokenShiftGrad, .limit = ops::shiftGradLimit, .checkInputs = ops::checkShiftGrad)

}  // namespace
}  // namespace selscan::cpu
