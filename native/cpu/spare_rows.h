// Rows in segments, block by block over the threads; and rows in none, whose outputs and gradients are zero.
#pragma once
#include <algorithm>
#include <cstring>

#include "core/segments.h"
#include "cpu/threads.h"

namespace selscan::cpu {

// A line before which no used segment ends after `row`. Lines that are used rise; others, begin == end, may stand anywhere.
inline int64_t firstLineAfter(const Tensor& segments, int64_t row) {
  int64_t low = 0, high = segments[0];
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    int64_t used = middle;
    Segment segment = segmentAt(segments.i32(), used);
    while (segment.begin == segment.end && ++used < high) segment = segmentAt(segments.i32(), used);
    if (used == high || segment.end > row) high = middle;
    else low = used + 1;
  }
  return low;
}

// body(segment, row) for every row of every segment, in blocks of rows over the threads.
template <class Body>
void overSegmentRows(const Tensor& segments, int64_t rows, int64_t block, Body body) {
  parallel((rows + block - 1) / block, [&](int64_t task) {
    const int64_t first = task * block, last = std::min(rows, first + block);
    for (int64_t s = firstLineAfter(segments, first); s < segments[0]; s++) {
      const Segment segment = segmentAt(segments.i32(), s);
      if (segment.begin == segment.end) continue;
      if (segment.begin >= last) return;
      for (int64_t row = std::max<int64_t>(first, segment.begin); row < std::min<int64_t>(last, segment.end); row++) body(segment, row);
    }
  });
}

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
