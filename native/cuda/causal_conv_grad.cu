// Causal depthwise convolution, backward. See lib/ops/causal-conv.ts for the equations.
//
// As in the forward pass a lane has 4 neighbouring channels of a run of rows, and walks them forward: at row t the sum before the
// SiLU is computed again from the inputs in registers, and its gradient d[t] completes dx of row t − tail. So that every dx is
// made by the run that has its row, a run goes on for `tail` rows into the next, whose sums over rows it leaves alone. The last
// rows of a segment meet no later d; the tail that the segment leaves holds them, and there dfinal is added. dweight and dbias
// are sums over a run in registers, then over runs, in f64. dinitial is the same sum for the rows before a segment: it needs d
// of the first `tail` rows alone, and has a kernel of its own.
// Bound by memory: 3 elements moved per channel·token, and 20 bytes for each channel and run of 16 to 256 rows. Not measured on
// a GPU yet.
#include "cuda/causal_conv.cuh"
#include "cuda/math.cuh"
#include "cuda/partials.cuh"
#include "ops/causal_conv.h"

namespace selscan::cuda {
namespace {

constexpr int RunShortest = 16, RunLongest = 256;
constexpr int Vector = 4;  // channels per lane: 8 or 16 bytes
constexpr int Ahead = 2;   // rows whose loads are under way together, of x and dy

template <class T>
struct ConvGrad {
  const T* dy;          // null: zeros
  const float* dfinal;  // null: zeros
  const T* x;
  const float *weight, *bias, *start;
  const int32_t* lines;
  T* dx;
  float* partial;  // (runs, width + 1, inner): dweight and dbias of each run; null: nobody reads them
  int64_t segments;
  Runs runs;
  bool silu;
};

// One lane's channels while the rows go by.
template <class T, int N, int Width>
struct Lane {
  static constexpr int Tail = Width - 1;
  float taps[N * Width], bias[N], dtaps[N * Width], dbias[N];
  float before[N * Tail], d[N * Tail];  // inputs and d of the last rows, oldest first

  // Takes in d of the next row, which completes dx of the row `Tail` before it.
  __device__ __forceinline__ void shift(const float (&now)[N], float (&dx)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) {
      dx[i] = taps[i * Width] * now[i];
#pragma unroll
      for (int j = Tail - 1; j >= 0; j--) dx[i] = fmaf(taps[i * Width + Tail - j], d[i * Tail + j], dx[i]);
#pragma unroll
      for (int j = 0; j + 1 < Tail; j++) d[i * Tail + j] = d[i * Tail + j + 1];
      d[i * Tail + Tail - 1] = now[i];
    }
  }

  // Takes in the next row; `sums`: it counts in the sums over rows.
  __device__ __forceinline__ void step(const Vec<T, N>& x, const Vec<T, N>& dy, bool silu, bool sums, float (&dx)[N]) {
    float now[N];
#pragma unroll
    for (int i = 0; i < N; i++) {
      const float in = toFloat(x.at[i]);
      float pre = bias[i];
#pragma unroll
      for (int k = 0; k < Tail; k++) pre = fmaf(taps[i * Width + k], before[i * Tail + k], pre);
      pre = fmaf(taps[i * Width + Tail], in, pre);
      now[i] = toFloat(dy.at[i]);
      if (silu) now[i] *= siluGrad(pre);
      const float counted = sums ? now[i] : 0.0f;
#pragma unroll
      for (int k = 0; k < Tail; k++) dtaps[i * Width + k] = fmaf(counted, before[i * Tail + k], dtaps[i * Width + k]);
      dtaps[i * Width + Tail] = fmaf(counted, in, dtaps[i * Width + Tail]);
      dbias[i] += counted;
#pragma unroll
      for (int j = 0; j + 1 < Tail; j++) before[i * Tail + j] = before[i * Tail + j + 1];
      before[i * Tail + Tail - 1] = in;
    }
    shift(now, dx);
  }
};

// registers: 128
template <class T, int N, int Width>
__global__ __launch_bounds__(ConvThreads, 4) void convolveRowsGrad(ConvGrad<T> conv) {
  constexpr int Tail = Width - 1;
  const int64_t warp = int64_t{blockIdx.x} * (ConvThreads / 32) + warpIndex(), inner = conv.runs.inner;
  if (warp >= conv.runs.warps) return;
  const int64_t run = warp / conv.runs.pieces;
  const int64_t first = run * conv.runs.runRows, last = min(conv.runs.rows, first + conv.runs.runRows);
  const int64_t own = (warp % conv.runs.pieces * 32 + laneIndex()) * N;
  const bool active = own < inner;  // the others do the first channels again, and keep it to themselves
  const int64_t channel = active ? own : 0;
  const T* x = conv.x + channel;
  const auto put = [&](int64_t row, const float(&dx)[N]) {
    if (active && conv.dx) storeVec<N>(conv.dx + row * inner + channel, dx);
  };

  Lane<T, N, Width> lane;
  loadFloats<N * Width>(conv.weight + channel * Width, lane.taps);
#pragma unroll
  for (int i = 0; i < N; i++) {
    lane.bias[i] = conv.bias ? conv.bias[channel + i] : 0.0f;
    lane.dbias[i] = 0.0f;
  }
#pragma unroll
  for (int i = 0; i < N * Width; i++) lane.dtaps[i] = 0.0f;

  int64_t s = 0;
  for (int64_t row = first; row < last; s++) {
    const SegmentLine segment = segmentFrom(conv.lines, conv.segments, s, row, last);
    s = segment.index;
    const int64_t begin = min(last, max(row, segment.begin)), end = min(last + Tail, segment.end);
    const float zeros[N] = {};
    for (; row < begin; row++) put(row, zeros);
    if (begin == last) break;

    // Rows [begin, end) of the segment; dx of those before begin is another run's, or dinitial.
    const int64_t tail = (s * inner + channel) * Tail;
    loadBefore<N, Tail>(x, inner, conv.start + tail, segment.begin, begin, lane.before);
#pragma unroll
    for (int i = 0; i < N * Tail; i++) lane.d[i] = 0.0f;
    const T *from = x + begin * inner, *given = conv.dy ? conv.dy + begin * inner + channel : nullptr;
    const auto load = [&](const T* at) { return *reinterpret_cast<const Vec<T, N>*>(at); };
    const auto step = [&](const Vec<T, N>& in, const Vec<T, N>& dy) {
      float dx[N];
      lane.step(in, dy, conv.silu, row < last, dx);
      if (row - Tail >= begin) put(row - Tail, dx);
      row++;
    };
    while (row + Ahead <= end) {
      Vec<T, N> in[Ahead], dy[Ahead] = {};
#pragma unroll
      for (int u = 0; u < Ahead; u++, from += inner) in[u] = load(from);
      if (given) {
#pragma unroll
        for (int u = 0; u < Ahead; u++, given += inner) dy[u] = load(given);
      }
#pragma unroll
      for (int u = 0; u < Ahead; u++) step(in[u], dy[u]);
    }
    for (; row < end; from += inner) {
      step(load(from), given ? load(given) : Vec<T, N>{});
      if (given) given += inner;
    }
    if (end < segment.end) break;  // which is past the run

    // The last rows.
#pragma unroll
    for (int j = 0; j < Tail; j++) {
      float dx[N];
      lane.shift(zeros, dx);
      const int64_t at = end - Tail + j;
      if (at < begin || at >= last) continue;
      if (conv.dfinal) {
#pragma unroll
        for (int i = 0; i < N; i++) dx[i] += conv.dfinal[tail + i * Tail + j];
      }
      put(at, dx);
    }
  }

  if (!active || !conv.partial) return;
  float* sums = conv.partial + run * (Width + 1) * inner + channel;
#pragma unroll
  for (int k = 0; k < Width; k++) {
    float tap[N];
#pragma unroll
    for (int i = 0; i < N; i++) tap[i] = lane.dtaps[i * Width + k];
    storeVec<N>(sums + k * inner, tap);
  }
  storeVec<N>(sums + Width * inner, lane.dbias);
}

// dinitial: of input j of a tail, Σ_k weight[k]·d[j − k] over the first rows, and dfinal where the segment is shorter than its
// tail. A thread has one channel of a segment.
// registers: 64
template <class T, int Width>
__global__ __launch_bounds__(ConvThreads) void initialGrad(ConvGrad<T> conv, int64_t pieces, float* dinitial) {
  constexpr int Tail = Width - 1;
  const int64_t inner = conv.runs.inner;
  for (int64_t piece = blockIdx.x; piece < conv.segments * pieces; piece += gridDim.x) {
    const int64_t s = piece / pieces, channel = piece % pieces * ConvThreads + threadIdx.x;
    if (channel >= inner) continue;
    const int64_t begin = conv.lines[5 * s], length = conv.lines[5 * s + 1] - begin, at = (s * inner + channel) * Tail;
    float taps[Width], in[2 * Tail], d[Tail];
#pragma unroll
    for (int k = 0; k < Width; k++) taps[k] = conv.weight[channel * Width + k];
#pragma unroll
    for (int j = 0; j < Tail; j++) {
      in[j] = conv.start[at + j];
      in[Tail + j] = j < length ? toFloat(conv.x[(begin + j) * inner + channel]) : 0.0f;
    }
#pragma unroll
    for (int t = 0; t < Tail; t++) {
      float pre = conv.bias ? conv.bias[channel] : 0.0f;
#pragma unroll
      for (int k = 0; k < Width; k++) pre = fmaf(taps[k], in[t + k], pre);
      d[t] = t < length && conv.dy ? toFloat(conv.dy[(begin + t) * inner + channel]) : 0.0f;
      if (conv.silu) d[t] *= siluGrad(pre);
    }
#pragma unroll
    for (int j = 0; j < Tail; j++) {
      float sum = 0.0f;
#pragma unroll
      for (int k = 0; k <= j; k++) sum = fmaf(taps[k], d[j - k], sum);
      if (conv.dfinal && length > 0 && j >= length) sum += conv.dfinal[at + j - length];
      dinitial[at + j] = length > 0 ? sum : 0.0f;
    }
  }
}

// Where column k·inner + c of the partial sums goes.
struct PutTaps {
  float *dweight, *dbias;  // null: nobody reads it
  int64_t inner;
  int width;
  __device__ void operator()(int64_t column, float sum) const {
    const int64_t k = column / inner, channel = column % inner;
    if (k < width && dweight) dweight[channel * width + k] = sum;
    if (k == width && dbias) dbias[channel] = sum;
  }
};

Runs runsOf(const Tensor& x) { return cutRows(x[0], x[1], x[1] % Vector == 0 ? Vector : 1, RunShortest, RunLongest); }

template <class T, int Width>
void convolveGrad(const Call& call) {
  const auto [dy, dfinal, x, weight, bias, segments, start] = call.in<7>();
  const auto [dx, dweight, dbias, dinitial] = call.out<4>();
  CudaDevice& device = deviceOf(call);
  const bool sums = dweight || dbias;
  float* const partial = sums ? reinterpret_cast<float*>(call.workspace) : nullptr;
  const ConvGrad<T> conv{dataOf<T>(dy), dfinal.f32(), dataOf<T>(x), weight.f32(), bias.f32(), start.f32(), segments.i32(),
                         dataOf<T>(dx), partial, segments[0], runsOf(x), call.attributes.flag("silu")};
  const auto rows = x[1] % Vector == 0 ? convolveRowsGrad<T, Vector, Width> : convolveRowsGrad<T, 1, Width>;
  if (dx || sums) launch(device, conv.runs.grid(), rows, conv);
  if (sums)
    launchLines(device, conv.partial, conv.runs.count(), (Width + 1) * x[1], PutTaps{dweight.f32(), dbias.f32(), x[1], Width});
  if (!dinitial) return;
  constexpr int64_t BlocksMost = 1 << 20;
  const int64_t pieces = ceilDiv(x[1], ConvThreads), blocks = std::min(BlocksMost, segments[0] * pieces);
  launch(device, {static_cast<unsigned>(blocks), ConvThreads}, initialGrad<T, Width>, conv, pieces, dinitial.f32());
}

void causalConvGrad(const Call& call) {
  withType(call.inputs[2].dtype, [&]<class T>() {
    const int64_t width = call.inputs[3][2];
    if (width == 2) convolveGrad<T, 2>(call);
    else if (width == 3) convolveGrad<T, 3>(call);
    else convolveGrad<T, 4>(call);
  });
}

size_t partialBytes(const Call& call) {
  const Tensor& x = call.inputs[2];
  return sizeof(float) * static_cast<size_t>(runsOf(x).count() * (call.inputs[3][2] + 1) * x[1]);
}

KERNEL(causalConvGrad, cuda, "dy? dfinal? x weight bias? segments start -> dx dweight dbias dinitial; silu", .run = causalConvGrad,
       .limit = ops::convGradLimit, .workspaceBytes = partialBytes, .checkInputs = ops::checkConvGrad)

}  // namespace
}  // namespace selscan::cuda
