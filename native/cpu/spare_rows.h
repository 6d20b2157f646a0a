// Rows that lie in no segment: their outputs and gradients are zero.
#pragma once
#include <cstring>

#include "core/segments.h"

namespace selscan::cpu {

// Zeroes the rows of a "rows width" tensor that lie in no segment. Null is an output that nobody reads.
inline void zeroSpareRows(const Tensor& segments, int64_t rows, int64_t width, float* data) {
  if (data == nullptr) return;
  int64_t next = 0;
  const auto zeroUpTo = [&](int64_t end) {
    if (end > next) std::memset(data + next * width, 0, sizeof(float) * static_cast<size_t>((end - next) * width));
  };
  for (int64_t s = 0; s < segments[0]; s++) {
    const Segment segment = segmentAt(segments.i32(), s);
    if (segment.begin == segment.end) continue;
    zeroUpTo(segment.begin);
    next = segment.end;
  }
  zeroUpTo(rows);
}

}  // namespace selscan::cpu
