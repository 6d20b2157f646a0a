// Rotary position embedding. See lib/ops/rope.ts for the equations, ops/rope.h for the angles.
//
// Blocks of rows over the threads. Sines and cosines are made once per row, a vector of pairs at a time, and serve all heads of
// the row. Bound by memory from two heads on.
#include <algorithm>
#include <cstring>

#include "core/kernel.h"
#include "cpu/spare_rows.h"
#include "cpu/threads.h"
#include "ops/rope.h"

#define EACH_ISA "cpu/rope.cpp"
#include "cpu/each_isa.h"

#ifdef ISA
namespace selscan::ISA {
namespace {

constexpr int64_t RowsPerTask = 8;  // some 10 µs at 2048 columns

// Of the pairs of one row, whole vectors.
struct Table {
  alignas(64) float sine[ops::PairsMost], cosine[ops::PairsMost];
};

// An angle is `quarter` quarter turns and a rest of at most an eighth of a turn on either side:
//   sin(a + π/2) = cos a, cos(a + π/2) = −sin a, and so on around.
void fill(const ops::Turn& turn, const ops::Steps& steps, uint64_t position, Table& table) {
  alignas(64) float rest[ops::PairsMost] = {}, odd[ops::PairsMost] = {}, sineSign[ops::PairsMost] = {}, cosineSign[ops::PairsMost] = {};
  const float direction = turn.inverse ? -1.0f : 1.0f;
  for (int64_t i = 0; i < turn.pairs; i++) {
    const uint64_t turned = steps.at[i] * position + (uint64_t{1} << 61);
    const auto quarter = static_cast<unsigned>(turned >> 62);
    const auto left = static_cast<int64_t>(turned & ((uint64_t{1} << 62) - 1)) - (int64_t{1} << 61);
    rest[i] = static_cast<float>(left) * 3.4061215800865545e-19f;  // 2π/2⁶⁴
    odd[i] = static_cast<float>(quarter & 1);
    sineSign[i] = quarter >= 2 ? -direction : direction;
    cosineSign[i] = quarter == 1 || quarter == 2 ? -1.0f : 1.0f;
  }
  for (int64_t i = 0; i < turn.pairs; i += Lanes) {
    F32 s, c;
    sinCos(load(rest + i), s, c);
    const F32 swapped = load(odd + i), half = set(0.5f);
    store(table.sine + i, selectGreater(swapped, half, c, s) * load(sineSign + i));
    store(table.cosine + i, selectGreater(swapped, half, s, c) * load(cosineSign + i));
  }
}

// One head: pairs (i, i + pairs). Both elements of a vector's pairs are read before either is written: y may be x.
void turnHalves(const float* x, const Table& table, int64_t pairs, float* y) {
  for (int64_t i = 0; i < pairs; i += Lanes) {
    const int n = static_cast<int>(std::min<int64_t>(Lanes, pairs - i));
    const F32 a = load(x + i, n), b = load(x + pairs + i, n), s = load(table.sine + i), c = load(table.cosine + i);
    store(y + i, fma(a, c, set(0.0f) - b * s), n);
    store(y + pairs + i, fma(b, c, a * s), n);
  }
}

// One head: pairs (2i, 2i + 1).
void turnNeighbours(const float* x, const Table& table, int64_t pairs, float* y) {
  for (int64_t i = 0; i < pairs; i++) {
    const float a = x[2 * i], b = x[2 * i + 1], s = table.sine[i], c = table.cosine[i];
    y[2 * i] = a * c - b * s;
    y[2 * i + 1] = b * c + a * s;
  }
}

void copy(const float* from, int64_t count, float* to) {
  if (from != to) std::memcpy(to, from, static_cast<size_t>(count) * sizeof(float));
}

void turnRow(const ops::Turn& turn, const Table& table, const float* x, int64_t width, float* y) {
  const auto turnHead = turn.interleaved ? turnNeighbours : turnHalves;
  for (int64_t head = 0; head < turn.width(); head += turn.headDim) {
    turnHead(x + head, table, turn.pairs, y + head);
    copy(x + head + turn.rotary(), turn.headDim - turn.rotary(), y + head + turn.rotary());
  }
  copy(x + turn.width(), width - turn.width(), y + turn.width());
}

}  // namespace

void rope(const Call& call) {
  const auto [x, segments] = call.in<2>();
  const auto [y] = call.out<1>();
  if (!y) return;
  const ops::Turn turn = ops::turnOf(call.attributes);
  const ops::Steps steps = ops::stepsOf(turn, call.attributes.number("base"));
  const int64_t rows = x[0], width = x[1];
  const float* from = x.f32();
  float* to = y.f32();
  cpu::overSegmentRows(segments, rows, RowsPerTask, [&, from, to](const Segment& segment, int64_t row) {
    Table table;
    fill(turn, steps, static_cast<uint64_t>(segment.position + (row - segment.begin)), table);
    turnRow(turn, table, from + row * width, width, to + row * width);
  });
  cpu::zeroSpareRows(segments, rows, width, to);
}

}  // namespace selscan::ISA
#else
namespace selscan::cpu {
KERNEL(rope, cpu, "x segments -> y; headDim heads base rotary interleaved inverse", .run = DISPATCH(rope), .limit = ops::ropeLimit,
       .checkInputs = ops::checkRope, .inPlace = {{0, 0}})
}  // namespace selscan::cpu
#endif
