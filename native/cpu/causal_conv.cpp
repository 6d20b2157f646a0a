// Causal depthwise convolution, forward. See lib/ops/causal-conv.ts for the equations.
//
// Channels lie in lanes. First, per segment, the tail it starts from is laid out as rows, and the tail it leaves is written:
// every row then reads its `width` inputs through pointers, whether they are rows of x or of a tail. Then blocks of whole rows, so
// that x and y stream. The taps are kept transposed beside the weight. Bound by the SiLU while x is in a cache, then by memory:
// 0.27 ns per channel·token for 512 rows × 1536 channels, width 4, on one core of an AMD EPYC (Zen 5), AVX-512, 2026-11-22; 0.9 for
// 8192 × 512 (1.6 in blocks of 32 rows × 256 channels); one row of 1536 channels: 1.0 µs.
#include <algorithm>

#include "cpu/threads.h"
#include "ops/causal_conv.h"

#define EACH_ISA "cpu/causal_conv.cpp"
#include "cpu/each_isa.h"

#ifdef ISA
namespace selscan::ISA {
namespace {

constexpr int64_t TaskElements = 16384;  // of whole rows, which stream: 64 KB of x, and 4 µs

struct Conv {
  const float *x, *taps, *bias, *initial;  // taps: [width][inner], the weight transposed; null: absent
  float* carried;
  float *y, *final, *start;  // null: nobody reads it
  float* tails;              // [segments][tail][inner]: the rows before each segment
  int32_t* segmentOf;        // [rows]: −1 for a spare row
  int64_t inner;
  bool silu;
};

// rows[j][c] = tails[c][j] and back: Tail is a constant, so that compilers make permutations of vectors of it.
template <int Tail>
void tailsToRows(const float* __restrict tails, int64_t inner, float* __restrict rows) {
  for (int64_t c = 0; c < inner; c++)
    for (int j = 0; j < Tail; j++) rows[j * inner + c] = tails[c * Tail + j];
}
template <int Tail>
void rowsToTails(const float* const (&rows)[Tail], int64_t inner, float* __restrict tails) {
  for (int64_t c = 0; c < inner; c++)
    for (int j = 0; j < Tail; j++) tails[c * Tail + j] = rows[j][c];
}

// Reads the tail a segment starts from, then writes the one it leaves: both may be the same slot.
template <int Width>
void carryTail(const Conv& conv, const Segment& segment, int64_t s) {
  constexpr int Tail = Width - 1;
  const int64_t size = conv.inner * Tail;
  const size_t bytes = sizeof(float) * static_cast<size_t>(size);
  const bool used = segment.begin < segment.end;
  const float* from = !used ? nullptr
                      : conv.initial ? conv.initial + s * size
                      : conv.carried && segment.from > 0 ? conv.carried + segment.from * size
                                                         : nullptr;
  float* before = conv.tails + s * size;
  if (from) tailsToRows<Tail>(from, conv.inner, before);
  else std::memset(before, 0, bytes);
  if (conv.start) from ? std::memcpy(conv.start + s * size, from, bytes) : std::memset(conv.start + s * size, 0, bytes);
  const float* last[Tail];
  for (int j = 0; j < Tail; j++) {
    const int64_t row = int64_t{segment.end} - Tail + j;
    last[j] = row >= segment.begin ? conv.x + row * conv.inner : before + (row - segment.begin + Tail) * conv.inner;
  }
  if (conv.final) used ? rowsToTails<Tail>(last, conv.inner, conv.final + s * size) : (void)std::memset(conv.final + s * size, 0, bytes);
  if (used && conv.carried && segment.to > 0) rowsToTails<Tail>(last, conv.inner, conv.carried + segment.to * size);
}

template <int Width>
void convolveRow(const Conv& conv, const int32_t* lines, int64_t row, int64_t begin, int64_t end) {
  float* y = conv.y + row * conv.inner;
  const int64_t s = conv.segmentOf[row];
  if (s < 0) {
    std::memset(y + begin, 0, sizeof(float) * static_cast<size_t>(end - begin));
    return;
  }
  const int64_t first = segmentAt(lines, s).begin;
  const float* inputs[Width];
  for (int k = 0; k < Width; k++) {
    const int64_t at = row - (Width - 1) + k;
    inputs[k] = at >= first ? conv.x + at * conv.inner : conv.tails + (s * (Width - 1) + at - first + Width - 1) * conv.inner;
  }
  for (int64_t c = begin; c < end; c += Lanes) {
    const int n = static_cast<int>(std::min<int64_t>(Lanes, end - c));
    F32 sum = conv.bias ? load(conv.bias + c, n) : set(0.0f);
#pragma GCC unroll 4
    for (int k = 0; k < Width; k++) sum = fma(load(conv.taps + k * conv.inner + c, n), load(inputs[k] + c, n), sum);
    store(y + c, conv.silu ? silu(sum) : sum, n);
  }
}

template <int Width>
void convolve(const Conv& conv, const Tensor& segments, int64_t rows) {
  const int32_t* lines = segments.i32();
  cpu::parallel(segments[0], [&](int64_t s) { carryTail<Width>(conv, segmentAt(lines, s), s); });
  if (conv.y == nullptr) return;
  const int64_t channels = std::min(conv.inner, TaskElements), each = TaskElements / channels;
  const int64_t pieces = (conv.inner + channels - 1) / channels;
  cpu::parallel((rows + each - 1) / each * pieces, [&](int64_t task) {
    const int64_t first = task / pieces * each, channel = task % pieces * channels;
    const int64_t end = std::min(conv.inner, channel + channels);
    for (int64_t t = first; t < std::min(rows, first + each); t++) convolveRow<Width>(conv, lines, t, channel, end);
  });
}

}  // namespace

void causalConv(const Call& call) {
  const auto [x, weight, bias, segments, initial, carried] = call.in<6>();
  const auto [y, final, start] = call.out<3>();
  const int64_t rows = x[0], inner = x[1], count = segments[0];
  const int width = static_cast<int>(weight[2]);
  auto* workspace = reinterpret_cast<float*>(call.workspace);
  const Conv conv{x.f32(), reinterpret_cast<const float*>(call.prepared[1]), bias.f32(), initial.f32(), carried.f32(), y.f32(),
                  final.f32(), start.f32(), workspace, reinterpret_cast<int32_t*>(workspace + count * (width - 1) * inner), inner,
                  call.attributes.flag("silu")};
  for (int64_t row = 0; row < rows; row++) conv.segmentOf[row] = -1;
  for (int64_t s = 0; s < count; s++) {
    const Segment segment = segmentAt(segments.i32(), s);
    for (int64_t row = segment.begin; row < segment.end; row++) conv.segmentOf[row] = static_cast<int32_t>(s);
  }
  const auto run = width == 2 ? convolve<2> : width == 3 ? convolve<3> : convolve<4>;
  run(conv, segments, rows);
}

}  // namespace selscan::ISA
#else
namespace selscan::cpu {
namespace {

void transposeTaps(const Tensor& weight, std::byte* prepared, Device&) {
  const int64_t inner = weight[0], width = weight[2];
  auto* taps = reinterpret_cast<float*>(prepared);
  for (int64_t c = 0; c < inner; c++)
    for (int64_t k = 0; k < width; k++) taps[k * inner + c] = weight.f32()[c * width + k];
}

const Preparation Taps{.name = "taps", .bytes = [](const Tensor& weight) { return weight.sizeBytes(); }, .run = transposeTaps};

}  // namespace

KERNEL(causalConv, cpu, "x weight bias? segments initial? carried?* -> y final start; silu", .run = DISPATCH(causalConv),
       .limit = ops::convLimit,
       .workspaceBytes = [](const Call& call) {
         const int64_t rows = call.inputs[0][0], inner = call.inputs[0][1], width = call.inputs[1][2], segments = call.inputs[3][0];
         return sizeof(float) * static_cast<size_t>(segments * (width - 1) * inner + rows);
       },
       .prepare = [](const Call&, int input) { return input == 1 ? &Taps : nullptr; }, .checkInputs = ops::checkConv)

}  // namespace selscan::cpu
#endif
