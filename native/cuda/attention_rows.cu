// Rows of a run around attention: zeros in spare ones, keys and values of the others into their rings.
//
// A warp for each row, element by element: few bytes beside those that attention itself moves. Where no row is spare and no ring
// given, as in training, a warp finds its line and is done. Bound by memory; the floor is 2·kvHeads·headDim elements of qkv and of
// the rings for each row. Not measured on a GPU yet.
#include "cuda/attention_rows.cuh"

namespace selscan::cuda::attention {
namespace {

constexpr unsigned RowThreads = 256;

// registers: 48
__global__ __launch_bounds__(RowThreads) void eachRow(const __grid_constant__ RunRows rows) {
  const Geometry& g = rows.g;
  const int64_t at = int64_t{blockIdx.x} * (RowThreads / 32) + warpIndex();
  if (at >= g.rows) return;
  const auto row = static_cast<int>(at);
  const Sequence sequence = sequenceOf(g, row);
  if (sequence.rows == 0) {
    if (rows.spare)
      for (int64_t column = laneIndex(); column < rows.columns; column += 32) rows.spare.store<1>(row * rows.columns + column, {0.0f});
    if (rows.lse)
      for (int head = laneIndex(); head < g.heads; head += 32) rows.lse[int64_t{row} * g.heads + head] = 0.0f;
    return;
  }
  if (!rows.qkv || sequence.ring == 0) return;
  const int64_t slot = (sequence.position + row - sequence.begin) % g.capacity;
  const int columns = g.kvHeads * g.headDim;
  const int64_t from = row * g.packed() + g.width();
#pragma unroll 4
  for (int column = laneIndex(); column < columns; column += 32) {
    const int64_t line = (sequence.ring * g.kvHeads + column / g.headDim) * g.capacity + slot, to = line * g.headDim + column % g.headDim;
    float key[1], value[1];
    rows.qkv.load<1>(from + column, key);
    rows.qkv.load<1>(from + columns + column, value);
    rows.keys.store<1>(to, key);
    rows.values.store<1>(to, value);
  }
}

}  // namespace

void finishRows(CudaDevice& device, const RunRows& rows) {
  launch(device, {static_cast<unsigned>(ceilDiv(rows.g.rows, RowThreads / 32)), RowThreads}, eachRow, rows);
}

}  // namespace selscan::cuda::attention
