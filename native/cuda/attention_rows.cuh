// What forward and backward attention do around their tiles: spare rows, rings, launches.
#pragma once
#include "cuda/attention.cuh"
#include "cuda/planes.cuh"

namespace selscan::cuda::attention {

// Rows as they come into the run: a spare one becomes zeros, the keys and values of others go to their ring.
struct RunRows {
  Geometry g;
  AnyFloat qkv = {}, keys = {}, values = {};  // without qkv rings are left alone
  AnyFloat spare = {};                        // (rows, columns), what spare rows are zeroed in
  int64_t columns = 0;
  float* lse = nullptr;
};

void finishRows(CudaDevice& device, const RunRows& rows);

// The plane of an input that products of precision bf16 read; those of f32 read it as it is.
inline const Preparation* halfPlane(const Call& call, int input) {
  return ops::precisionOf(call.attributes) == ops::Precision::bf16 ? planesFor(call, input) : nullptr;
}

// Calls body.template operator()<Width>() with the width of a kernel's tiles.
template <class Body>
void withWidth(int width, Body&& body) {
  if (width == 32) body.template operator()<32>();
  else if (width == 64) body.template operator()<64>();
  else if (width == 128) body.template operator()<128>();
  else body.template operator()<256>();
}

constexpr int64_t CountMost = int64_t{1} << 31;
// Packed rows are counted in ints, those of a tile that begins at the last one and has 63 more, too.
inline std::string packedLimit(const Call& call, int64_t rows) {
  const int64_t packed = rows * ops::headsOf(call.attributes).heads;
  return packed <= CountMost - 64 ? "" : "rows·heads is at most 2^31 − 64, got " + std::to_string(packed);
}
inline std::string launchLimit(int64_t blocks) {
  return blocks < CountMost ? "" : "a launch has below 2^31 blocks, got " + std::to_string(blocks);
}

}  // namespace selscan::cuda::attention
