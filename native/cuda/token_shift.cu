// Token shift, forward and backward. See lib/ops/token-shift.ts.
//
// A warp has one row, and moves its two halves 16 bytes at a time where dim is such that both begin at multiples of 16, else
// element by element. Slots are written by a second kernel: one may be read and written in the same run. Bound by memory: 2
// elements moved per element. Not measured on a GPU yet.
#include "ops/token_shift.h"

#include "cuda/launch.cuh"
#include "cuda/segments.cuh"

namespace selscan::cuda {
namespace {

constexpr unsigned Threads = 128;

template <class T>
struct Shift {
  const T* x;
  float* carried;  // null: absent
  const int32_t* lines;
  T* y;
  int64_t segments, rows, dim, kept;  // kept: columns that stay in their row
  bool back;                          // the gradient: the second half comes from the row after
};

// `count` elements; from null: zeros.
template <int N, class T>
__device__ __forceinline__ void copyRow(T* to, const T* from, int64_t count) {
  for (int64_t i = int64_t{laneIndex()} * N; i < count; i += 32 * N) {
    Vec<T, N> v;
    if (from) {
      v = *reinterpret_cast<const Vec<T, N>*>(from + i);
    } else {
#pragma unroll
      for (int k = 0; k < N; k++) v.at[k] = fromFloat<T>(0.0f);
    }
    storeWhole(to + i, v);
  }
}

// registers: 40
template <class T, int N>
__global__ __launch_bounds__(Threads) void shiftRows(Shift<T> shift) {
  const int64_t row = int64_t{blockIdx.x} * (Threads / 32) + warpIndex();
  if (row >= shift.rows) return;
  const int64_t dim = shift.dim, kept = shift.kept, half = dim - kept;
  const SegmentLine segment = segmentFrom(shift.lines, shift.segments, 0, row, shift.rows);
  const bool spare = row < segment.begin;
  const T* x = shift.x + row * dim;
  T* y = shift.y + row * dim;
  copyRow<N>(y, spare ? nullptr : x, kept);
  const bool inside = shift.back ? row + 1 < segment.end : row > segment.begin;
  const float* slot = !spare && !inside && shift.carried && segment.from > 0 ? shift.carried + segment.from * half : nullptr;
  if (slot) {
    for (int64_t i = laneIndex(); i < half; i += 32) y[kept + i] = fromFloat<T>(slot[i]);
  } else {
    const T* neighbour = shift.back ? x + dim : x - dim;
    copyRow<N>(y + kept, !spare && inside ? neighbour + kept : nullptr, half);
  }
}

// The second half of a segment's last row into its slot: a warp for each segment.
// registers: 32
template <class T>
__global__ __launch_bounds__(Threads) void leaveHalves(Shift<T> shift) {
  const int64_t s = int64_t{blockIdx.x} * (Threads / 32) + warpIndex();
  if (s >= shift.segments) return;
  const int32_t* line = shift.lines + 5 * s;
  const int64_t begin = line[0], end = line[1], to = line[4], half = shift.dim - shift.kept;
  if (begin == end || to == 0) return;
  const T* from = shift.x + (end - 1) * shift.dim + shift.kept;
  for (int64_t i = laneIndex(); i < half; i += 32) shift.carried[to * half + i] = toFloat(from[i]);
}

template <class T>
void launchShift(CudaDevice& device, const Shift<T>& shift) {
  constexpr int N = 16 / sizeof(T);
  const bool vectors = shift.dim % N == 0 && shift.kept % N == 0;
  launch(device, {static_cast<unsigned>(ceilDiv(shift.rows, Threads / 32)), Threads}, vectors ? shiftRows<T, N> : shiftRows<T, 1>, shift);
}

void tokenShift(const Call& call) {
  const auto [x, segments, carried] = call.in<3>();
  const auto [y] = call.out<1>();
  CudaDevice& device = deviceOf(call);
  withType(x.dtype, [&, x = x, segments = segments, carried = carried, y = y]<class T>() {
    const Shift<T> shift{dataOf<T>(x), carried.f32(), segments.i32(), dataOf<T>(y), segments[0], x[0], x[1],
                         x[1] - ops::shiftedColumns(x[1]), false};
    if (y) launchShift(device, shift);
    if (carried)
      launch(device, {static_cast<unsigned>(ceilDiv(shift.segments, Threads / 32)), Threads}, leaveHalves<T>, shift);
  });
}

void tokenShiftGrad(const Call& call) {
  const auto [dy, segments] = call.in<2>();
  const auto [dx] = call.out<1>();
  if (!dx) return;
  withType(dy.dtype, [&, dy = dy, segments = segments, dx = dx]<class T>() {
    launchShift(deviceOf(call), Shift<T>{dataOf<T>(dy), nullptr, segments.i32(), dataOf<T>(dx), segments[0], dy[0], dy[1],
                                         dy[1] - ops::shiftedColumns(dy[1]), true});
  });
}

KERNEL(tokenShift, cuda, "x segments carried?* -> y", .run = tokenShift, .limit = ops::shiftLimit, .checkInputs = ops::checkShift)
KERNEL(tokenShiftGrad, cuda, "dy segments -> dx", .run = tokenShiftGrad, .limit = ops::shiftGradLimit, .checkInputs = ops::checkShiftGrad)

}  // namespace
}  // namespace selscan::cuda
