// What the forward and the backward selective scan share on the cpu: how channels, rows and segments are cut into work.
#pragma once
#include <algorithm>

#include "cpu/plan.h"
#include "cpu/spare_rows.h"
#include "ops/selective_scan.h"

namespace selscan::cpu {

using ops::ScanChunk, ops::ScanStateMax;

// `lanes` neighbouring channels of one group: what one vector holds.
struct ChannelBlock {
  int64_t channel, group;
  int lanes;
};

// Channels cut into vectors that never span two groups, so that B and C are one number for all lanes.
struct ChannelBlocks {
  int64_t perGroup, blocksPerGroup, groups;
  int width;

  ChannelBlocks(int64_t inner, int64_t groups, int width)
      : perGroup(inner / groups), blocksPerGroup((perGroup + width - 1) / width), groups(groups), width(width) {}
  int64_t count() const { return groups * blocksPerGroup; }
  ChannelBlock at(int64_t block) const {
    const int64_t group = block / blocksPerGroup, first = block % blocksPerGroup * width;
    return {group * perGroup + first, group, static_cast<int>(std::min<int64_t>(width, perGroup - first))};
  }
};

// How the backward scan is cut, from shapes alone, and where things lie in its workspace (in floats).
//
// Channels of a group are cut into stripes and segments into parts; a task is one stripe × one part. Sums over channels
// (dB, dC) are added up per stripe, sums over rows (dA, dD, dbias) per part, and both then in rising order.
struct ScanGradPlan {
  static constexpr int64_t PartsMax = 8;      // bounds the copies of dA
  static constexpr int64_t PartialMax = 256;  // floats per row of partial dB, and of dC: 2 KB per row in all
  static constexpr int64_t TileFloats = 10 * ScanChunk * Width + (ScanChunk + 1) * Width * Width + 2 * ScanChunk * ScanStateMax;

  int64_t rows, padded, state, groups, stripes, parts;

  ScanGradPlan(const Tensor& A, const Tensor& B, const Tensor& segments) : rows(B[0]), state(A[1]), groups(B[1] / A[1]) {
    const int64_t vectors = (A[0] / groups + Width - 1) / Width;
    padded = groups * vectors * Width;
    stripes = std::max<int64_t>(1, std::min(vectors, PartialMax / B[1]));
    parts = std::min(PartsMax, segments[0]);
  }
  int64_t tasks() const { return groups * stripes * parts; }
  int64_t workers() const { return std::min(WorkersMax, tasks()); }

  int64_t decay() const { return 0; }                                                // [padded][state] as tiles
  int64_t dA(int64_t part) const { return (1 + part) * padded * state; }             // [padded][state] as tiles
  int64_t carry(int64_t part) const { return (1 + parts + part) * padded * state; }  // dL/dh, likewise
  int64_t dD(int64_t part) const { return (1 + 2 * parts) * padded * state + part * padded; }
  int64_t dbias(int64_t part) const { return dD(parts) + part * padded; }
  int64_t dB() const { return dbias(parts); }  // [groups·stripes][rows][state]; none with one stripe
  int64_t dC() const { return dB() + (stripes > 1 ? groups * stripes * rows * state : 0); }
  int64_t tiles() const { return selscan::cpu::padded(2 * dC() - dB()); }
  size_t sizeBytes() const { return sizeof(float) * static_cast<size_t>(tiles() + workers() * TileFloats); }
};

}  // namespace selscan::cpu
