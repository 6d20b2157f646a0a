// Lines of segments (core/segments.h) as kernels read them, and the searches of a warp among them. Every warp searches by itself, with
// all its lanes: used lines rise, but unused ones stand anywhere among them.
#pragma once
#include "core/segments.h"

#include "cuda/block.cuh"

namespace selscan::cuda {

__device__ __forceinline__ Segment readSegment(const int32_t* segments, int64_t s) {
  const int32_t* line = segments + 5 * s;
  return {line[0], line[1], line[2], line[3], line[4]};
}
__device__ __forceinline__ bool isUsed(const Segment& segment) { return segment.begin < segment.end; }

// The used line for which holds(segment, line) is true, or −1; it is true of one at most.
template <class Holds>
__device__ __forceinline__ int lineWhere(const int32_t* segments, int lines, const Holds& holds) {
  int found = -1;
#pragma unroll 4
  for (int s = laneIndex(); s < lines; s += 32)
    if (const Segment segment = readSegment(segments, s); isUsed(segment) && holds(segment, s)) found = s;
  return overWarp(Maximum{}, found);
}

// Where the rows of the last used segment before line s end.
__device__ __forceinline__ int endBefore(const int32_t* segments, int s) {
  int end = 0;
#pragma unroll 1
  for (int i = laneIndex(); i < s; i += 32)
    if (const Segment segment = readSegment(segments, i); isUsed(segment)) end = max(end, segment.end);
  return overWarp(Maximum{}, end);
}

// A used line's rows [begin, end) and slots.
struct SegmentLine {
  int64_t index, begin, end;
  int32_t from, to;
};

// The first used line from `index` on that has rows at or after `row`: it holds the row, or all rows before it are spare.
// None: an empty line at `last`.
__device__ __forceinline__ SegmentLine segmentFrom(const int32_t* lines, int64_t count, int64_t index, int64_t row, int64_t last) {
  for (int64_t first = index; first < count; first += 32) {
    const int64_t own = first + laneIndex();
    const bool reaches = own < count && lines[5 * own] < lines[5 * own + 1] && lines[5 * own + 1] > row;
    const unsigned found = __ballot_sync(~0u, reaches);
    if (found == 0) continue;
    const int64_t s = first + __ffs(static_cast<int>(found)) - 1;
    const Segment segment = readSegment(lines, s);
    return {s, segment.begin, segment.end, segment.from, segment.to};
  }
  return {count, last, last, 0, 0};
}

}  // namespace selscan::cuda
