// Causal depthwise convolution, forward. See lib/ops/causal-conv.ts for the equations.
//
// A lane owns 4 neighbouring channels where the width allows (8 of bf16 would take 170 registers), and slides their last inputs
// through registers over a run of 4 to 64 rows: no shared memory, and x is read once from memory (the tail before a run comes
// from the cache).
// A run goes segment by segment; where one begins in it, its tail is loaded instead. The sum of an output is one chain of fused
// multiply-adds in the order of the taps, so its bits do not depend on the cut. Tails are left by a second kernel: a slot may
// be read and written in the same run. Decoding, whose few rows are one run, needs only the first: there a lane that writes a
// slot has read it.
// Bound by memory: 2 elements moved per channel·token, 4 bytes of bf16; the SiLU costs 2 of the special function unit's
// operations, half of what that takes on an H200. Not measured on a GPU yet.
#include "cuda/causal_conv.cuh"
#include "cuda/math.cuh"
#include "ops/causal_conv.h"

namespace selscan::cuda {
namespace {

constexpr int RunShortest = 4, RunLongest = 64;
constexpr int Vector = 4;   // channels per lane: 8 or 16 bytes
constexpr int Ahead = 4;   // rows whose loads are under way together: 25 KB of bf16 a multiprocessor

template <class T>
struct Conv {
  const T* x;
  const float *weight, *bias, *initial;  // null: absent
  float* carried;
  const int32_t* lines;
  T* y;
  float *final, *start;  // null: nobody reads it
  int64_t segments, slotSize;
  Runs runs;
  bool silu, whole;  // whole: there is one run, which leaves the tails in their slots

  // The tail that a segment starts from; null: zeros.
  __device__ const float* tailOf(const SegmentLine& segment) const {
    if (initial) return initial + segment.index * slotSize;
    return carried && segment.from > 0 ? carried + segment.from * slotSize : nullptr;
  }
};

template <class T, int N>
__device__ __forceinline__ void storeZeros(T* to) {
  const float zeros[N] = {};
  storeVec<N>(to, zeros);
}

// One lane's channels while the rows go by.
template <class T, int N, int Width>
struct Lane {
  static constexpr int Tail = Width - 1;
  float taps[N * Width], bias[N];
  float before[N * Tail];  // the last inputs of each channel, oldest first

  // Takes in the next row.
  __device__ __forceinline__ void step(const Vec<T, N> x, bool activated, bool kept, T* to) {
    float y[N];
#pragma unroll
    for (int i = 0; i < N; i++) {
      const float now = toFloat(x.at[i]);
      float sum = bias[i];
#pragma unroll
      for (int k = 0; k < Tail; k++) sum = fmaf(taps[i * Width + k], before[i * Tail + k], sum);
      sum = fmaf(taps[i * Width + Tail], now, sum);
      y[i] = activated ? silu(sum) : sum;
#pragma unroll
      for (int j = 0; j + 1 < Tail; j++) before[i * Tail + j] = before[i * Tail + j + 1];
      before[i * Tail + Tail - 1] = now;
    }
    if (kept) storeVec<N>(to, y);
  }
};

// registers: 80
template <class T, int N, int Width>
__global__ __launch_bounds__(ConvThreads, 6) void convolveRows(Conv<T> conv) {
  constexpr int Tail = Width - 1;
  const int64_t warp = int64_t{blockIdx.x} * (ConvThreads / 32) + warpIndex(), inner = conv.runs.inner;
  if (warp >= conv.runs.warps) return;
  const int64_t first = warp / conv.runs.pieces * conv.runs.runRows, last = min(conv.runs.rows, first + conv.runs.runRows);
  const int64_t own = (warp % conv.runs.pieces * 32 + laneIndex()) * N;
  const bool active = own < inner;  // the others do the first channels again, and keep it to themselves
  const int64_t channel = active ? own : 0;
  const T* x = conv.x + channel;
  T* y = conv.y + channel;

  Lane<T, N, Width> lane;
  loadFloats<N * Width>(conv.weight + channel * Width, lane.taps);
#pragma unroll
  for (int i = 0; i < N; i++) lane.bias[i] = conv.bias ? conv.bias[channel + i] : 0.0f;

  int64_t s = 0;
  for (int64_t row = first; row < last; s++) {
    const SegmentLine segment = segmentFrom(conv.lines, conv.segments, s, row, last);
    s = segment.index;
    const int64_t begin = min(last, max(row, segment.begin)), end = min(last, segment.end);
    for (; row < begin; row++)
      if (active) storeZeros<T, N>(y + row * inner);
    if (begin == last) break;

    // Rows [begin, end) of the segment.
    const float* tail = active ? conv.tailOf(segment) : nullptr;  // another lane may be writing the first channels' slot
    loadBefore<N, Tail>(x, inner, tail ? tail + channel * Tail : nullptr, segment.begin, begin, lane.before);
    const T* from = x + begin * inner;
    T* to = y + begin * inner;
    for (; row + Ahead <= end; row += Ahead) {
      Vec<T, N> in[Ahead];
#pragma unroll
      for (int u = 0; u < Ahead; u++, from += inner) in[u] = *reinterpret_cast<const Vec<T, N>*>(from);
#pragma unroll
      for (int u = 0; u < Ahead; u++, to += inner) lane.step(in[u], conv.silu, active, to);
    }
    for (; row < end; row++, from += inner, to += inner)
      lane.step(*reinterpret_cast<const Vec<T, N>*>(from), conv.silu, active, to);
    if (conv.whole && segment.to > 0 && active)
      storeFloats<N * Tail>(conv.carried + segment.to * conv.slotSize + channel * Tail, lane.before);
  }
}

// start, final and the slots of carried. A thread has one channel of a segment, and reads its old tail before it writes the new.
// registers: 48
template <class T, int Width>
__global__ __launch_bounds__(ConvThreads) void leaveTails(Conv<T> conv, int64_t pieces) {
  constexpr int Tail = Width - 1;
  for (int64_t piece = blockIdx.x; piece < conv.segments * pieces; piece += gridDim.x) {
    const int64_t s = piece / pieces, channel = piece % pieces * ConvThreads + threadIdx.x;
    if (channel >= conv.runs.inner) continue;
    const int32_t* line = conv.lines + 5 * s;
    const SegmentLine segment{s, line[0], line[1], line[3], line[4]};
    const int64_t length = segment.end - segment.begin, at = s * conv.slotSize + channel * Tail;
    const float* from = length > 0 ? conv.tailOf(segment) : nullptr;
    float tail[Tail], left[Tail];
#pragma unroll
    for (int j = 0; j < Tail; j++) tail[j] = from ? from[channel * Tail + j] : 0.0f;
#pragma unroll
    for (int j = 0; j < Tail; j++) {
      left[j] = 0.0f;
      if (length > 0 && length >= Tail - j) {
        left[j] = toFloat(conv.x[(segment.end - Tail + j) * conv.runs.inner + channel]);
      } else {
#pragma unroll
        for (int k = 0; k < Tail; k++)
          if (k == j + length) left[j] = tail[k];
      }
    }
#pragma unroll
    for (int j = 0; j < Tail; j++) {
      if (conv.start) conv.start[at + j] = tail[j];
      if (conv.final) conv.final[at + j] = left[j];
      if (conv.carried && length > 0 && segment.to > 0) conv.carried[segment.to * conv.slotSize + channel * Tail + j] = left[j];
    }
  }
}

template <class T, int Width>
void convolve(const Call& call) {
  const auto [x, weight, bias, segments, initial, carried] = call.in<6>();
  const auto [y, final, start] = call.out<3>();
  CudaDevice& device = deviceOf(call);
  const bool vectors = x[1] % Vector == 0;
  Conv<T> conv{dataOf<T>(x), weight.f32(), bias.f32(), initial.f32(), carried.f32(), segments.i32(),
               dataOf<T>(y), final.f32(), start.f32(), segments[0], x[1] * (Width - 1), cutRows(x[0], x[1], vectors ? Vector : 1, RunShortest, RunLongest),
               call.attributes.flag("silu"), false};
  conv.whole = y && carried && conv.runs.count() == 1 && !final && !start;
  if (y) launch(device, conv.runs.grid(), vectors ? convolveRows<T, Vector, Width> : convolveRows<T, 1, Width>, conv);
  if (conv.whole || !(final || start || carried)) return;
  constexpr int64_t BlocksMost = 1 << 20;
  const int64_t pieces = ceilDiv(x[1], ConvThreads), blocks = std::min(BlocksMost, segments[0] * pieces);
  launch(device, {static_cast<unsigned>(blocks), ConvThreads}, leaveTails<T, Width>, conv, pieces);
}

void causalConv(const Call& call) {
  withType(call.inputs[0].dtype, [&]<class T>() {
    const int64_t width = call.inputs[1][2];
    if (width == 2) convolve<T, 2>(call);
    else if (width == 3) convolve<T, 3>(call);
    else convolve<T, 4>(call);
  });
}

KERNEL(causalConv, cuda, "x weight bias? segments initial? carried?* -> y final start; silu", .run = causalConv,
       .limit = ops::convLimit, .checkInputs = ops::checkConv)

}  // namespace
}  // namespace selscan::cuda
