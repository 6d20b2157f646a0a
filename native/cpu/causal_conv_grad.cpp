// Causal depthwise convolution, backward. See lib/ops/causal-conv.ts for the equations.
//
// A task is a few neighbouring vectors of channels over all segments in order, so that dweight and dbias, sums over rows,
// add up in registers in row order. It walks the rows forward: at row t the pre-activation is computed again from the last
// `width` inputs, and dx of row t − tail is complete. Rows go in chunks, vector by vector, and the next chunk's lines are fetched
// meanwhile. 0.85 ns per channel·token for 16 × 512 rows × 512 channels, width 4, on one core of an AMD EPYC (Zen 5), AVX-512,
// 2026-11-22; 4.6 without the fetching. Tried: tasks of 64 whole rows, each with sums of its own, 8 rows at a time: as fast, 1.6 times slower
// without the fetching.
#include <algorithm>

#include "cpu/spare_rows.h"
#include "cpu/threads.h"
#include "ops/causal_conv.h"

#define EACH_ISA "cpu/causal_conv_grad.cpp"
#include "cpu/each_isa.h"

#ifdef ISA
#include "cpu/lane_tile.h"

namespace selscan::ISA {
namespace {

constexpr int Vectors = 4;          // of channels per task: 256 bytes of a row with AVX-512
constexpr int64_t ChunkRows = 32;

struct ConvGrad {
  const float *dy, *dfinal, *x, *weight, *bias, *start;  // null: absent
  float *dx, *dweight, *dbias, *dinitial;                // null: nobody reads it
  int64_t rows, inner;
  bool silu;
};

// One vector of channels while the rows go by.
template <int Width>
struct Walk {
  static constexpr int Tail = Width - 1;
  int64_t channel;
  int lanes;
  F32 taps[Width], bias, dtaps[Width], dbias;
  F32 x[Tail], d[Tail];  // inputs and pre-activation gradients of the last rows, oldest first
  alignas(64) float dfinal[Tail * Lanes], dinitial[Tail * Lanes];
};

template <int Width>
void enter(const ConvGrad& conv, int64_t s, Walk<Width>& walk) {
  constexpr int Tail = Width - 1;
  const int64_t at = (s * conv.inner + walk.channel) * Tail;
  alignas(64) float start[Tail * Lanes];
  gatherLanes(conv.start + at, Tail, walk.lanes, 1.0f, start);
  for (int j = 0; j < Tail; j++) {
    walk.x[j] = load(start + j * Lanes);
    walk.d[j] = set(0.0f);
  }
  if (conv.dfinal) gatherLanes(conv.dfinal + at, Tail, walk.lanes, 1.0f, walk.dfinal);
  else std::memset(walk.dfinal, 0, sizeof walk.dfinal);
}

// Takes in the pre-activation gradient d of row t, which completes the input gradient of row t − tail.
template <int Width>
inline F32 shift(Walk<Width>& walk, F32 d) {
  constexpr int Tail = Width - 1;
  F32 dx = walk.taps[0] * d;
#pragma GCC unroll 4
  for (int j = Tail - 1; j >= 0; j--) dx = fma(walk.taps[Width - 1 - j], walk.d[j], dx);
#pragma GCC unroll 4
  for (int j = 0; j + 1 < Tail; j++) walk.d[j] = walk.d[j + 1];
  walk.d[Tail - 1] = d;
  return dx;
}

// dx of a row of the segment, or of one of the tail rows before it.
template <int Width>
inline void put(const ConvGrad& conv, const Segment& segment, int64_t row, F32 dx, Walk<Width>& walk) {
  if (row < segment.begin) store(walk.dinitial + (row - segment.begin + Width - 1) * Lanes, dx);
  else if (conv.dx) store(conv.dx + row * conv.inner + walk.channel, dx, walk.lanes);
}

// The lines of this vector of channels in the next chunk: rows are far apart, and each line is a miss of its own.
inline void fetch(const ConvGrad& conv, int64_t at) {
  cpu::prefetch(conv.x + at);
  if (conv.dy) cpu::prefetch(conv.dy + at);
  if (conv.dx) cpu::prefetchToWrite(conv.dx + at);
}

template <int Width>
void walkRows(const ConvGrad& conv, const Segment& segment, int64_t begin, int64_t end, Walk<Width>& kept) {
  constexpr int Tail = Width - 1;
  Walk<Width> walk = kept;
  for (int64_t t = begin; t < end; t++) {
    const int64_t at = t * conv.inner + walk.channel;
    if (t + ChunkRows < conv.rows) fetch(conv, at + ChunkRows * conv.inner);
    const F32 x = load(conv.x + at, walk.lanes);
    F32 pre = walk.bias;
#pragma GCC unroll 4
    for (int k = 0; k < Tail; k++) pre = fma(walk.taps[k], walk.x[k], pre);
    pre = fma(walk.taps[Tail], x, pre);
    F32 d = conv.dy ? load(conv.dy + at, walk.lanes) : set(0.0f);
    if (conv.silu) d = d * siluGrad(pre);
#pragma GCC unroll 4
    for (int k = 0; k < Tail; k++) walk.dtaps[k] = fma(d, walk.x[k], walk.dtaps[k]);
    walk.dtaps[Tail] = fma(d, x, walk.dtaps[Tail]);
    walk.dbias = walk.dbias + d;
#pragma GCC unroll 4
    for (int k = 0; k + 1 < Tail; k++) walk.x[k] = walk.x[k + 1];
    walk.x[Tail - 1] = x;
    put(conv, segment, t - Tail, shift(walk, d), walk);
  }
  kept = walk;
}

// The last rows meet no later one; the tail the segment leaves holds them.
template <int Width>
void leave(const ConvGrad& conv, const Segment& segment, int64_t s, Walk<Width>& walk) {
  constexpr int Tail = Width - 1;
  for (int j = 0; j < Tail; j++)
    put(conv, segment, int64_t{segment.end} - Tail + j, shift(walk, set(0.0f)) + load(walk.dfinal + j * Lanes), walk);
  if (conv.dinitial) scatterLanes(walk.dinitial, Tail, walk.lanes, conv.dinitial + (s * conv.inner + walk.channel) * Tail);
}

template <int Width>
void open(const ConvGrad& conv, int64_t channel, Walk<Width>& walk) {
  walk.channel = channel;
  walk.lanes = static_cast<int>(std::min<int64_t>(Lanes, conv.inner - channel));
  alignas(64) float taps[Width * Lanes];
  gatherLanes(conv.weight + channel * Width, Width, walk.lanes, 1.0f, taps);
  for (int k = 0; k < Width; k++) {
    walk.taps[k] = load(taps + k * Lanes);
    walk.dtaps[k] = set(0.0f);
  }
  walk.bias = conv.bias ? load(conv.bias + channel, walk.lanes) : set(0.0f);
  walk.dbias = set(0.0f);
}

template <int Width>
void close(const ConvGrad& conv, const Walk<Width>& walk) {
  alignas(64) float dtaps[Width * Lanes];
  for (int k = 0; k < Width; k++) store(dtaps + k * Lanes, walk.dtaps[k]);
  if (conv.dweight) scatterLanes(dtaps, Width, walk.lanes, conv.dweight + walk.channel * Width);
  if (conv.dbias) store(conv.dbias + walk.channel, walk.dbias, walk.lanes);
}

template <int Width>
void gradChannels(const ConvGrad& conv, const Tensor& segments, int64_t task) {
  Walk<Width> walks[Vectors];
  int vectors = 0;
  for (int64_t c = task * Vectors * Lanes; vectors < Vectors && c < conv.inner; c += Lanes) open(conv, c, walks[vectors++]);
  for (int64_t s = 0; s < segments[0]; s++) {
    const Segment segment = segmentAt(segments.i32(), s);
    if (segment.begin == segment.end) continue;
    for (int v = 0; v < vectors; v++) enter(conv, s, walks[v]);
    for (int64_t begin = segment.begin; begin < segment.end; begin += ChunkRows)
      for (int v = 0; v < vectors; v++) walkRows(conv, segment, begin, std::min<int64_t>(segment.end, begin + ChunkRows), walks[v]);
    for (int v = 0; v < vectors; v++) leave(conv, segment, s, walks[v]);
  }
  for (int v = 0; v < vectors; v++) close(conv, walks[v]);
}

}  // namespace

void causalConvGrad(const Call& call) {
  const auto [dy, dfinal, x, weight, bias, segments, start] = call.in<7>();
  const auto [dx, dweight, dbias, dinitial] = call.out<4>();
  const int64_t rows = x[0], inner = x[1], width = weight[2], size = inner * (width - 1);
  const ConvGrad conv{dy.f32(), dfinal.f32(), x.f32(), weight.f32(), bias.f32(), start.f32(), dx.f32(), dweight.f32(), dbias.f32(),
                      dinitial.f32(), rows, inner, call.attributes.flag("silu")};
  const auto task = width == 2 ? gradChannels<2> : width == 3 ? gradChannels<3> : gradChannels<4>;
  cpu::parallel((inner + Vectors * Lanes - 1) / (Vectors * Lanes), [&](int64_t i) { task(conv, segments, i); });
  cpu::zeroSpareRows(segments, rows, inner, conv.dx);
  if (conv.dinitial == nullptr) return;
  for (int64_t s = 0; s < segments[0]; s++)
    if (const Segment segment = segmentAt(segments.i32(), s); segment.begin == segment.end)
      std::memset(conv.dinitial + s * size, 0, sizeof(float) * static_cast<size_t>(size));
}

}  // namespace selscan::ISA
#else
namespace selscan::cpu {

KERNEL(causalConvGrad, cpu, "dy? dfinal? x weight bias? segments start -> dx dweight dbias dinitial; silu", .run = DISPATCH(causalConvGrad),
       .limit = ops::convGradLimit, .checkInputs = ops::checkConvGrad)

}  // namespace selscan::cpu
#endif
