// Selective scan, forward. See lib/ops/selective-scan.ts for the equations.
//
// A task is one vector of channels × one segment; it walks the segment in chunks of 64 rows: first Δ = softplus(delta + bias)
// and Δ·x of all rows, then the recurrence with up to 16 states in registers, then the gate. B and C are broadcast
// operands from L1. States are transposed between [channel][state] in memory and [state][lane] here, once per segment
// and chunk. Vectors of channels end at the edge of a group: with fewer than 16 channels per group, lanes idle.
//
// Bound by the exponentials: 9 of 12 vector instructions per state. 512 rows × 1024 channels, state 16, with z, D and bias, on
// an AMD EPYC (Zen 5), AVX-512, 2026-11-22, beside other work: 2.4–2.6 ns per channel·token on one core, 1.6–1.8 times that
// speed on two; 27–40 times a plain scalar loop with expf. State 64: 7 ns. AVX2: 6.9 ns. A single row pays for its transposes:
// 20 ns per channel.
#include "cpu/selective_scan.h"
#include "cpu/threads.h"

#define EACH_ISA "cpu/selective_scan.cpp"
#include "cpu/each_isa.h"

#ifdef ISA
#include "cpu/lane_tile.h"
#include "cpu/scan_tile.h"

namespace selscan::ISA {
namespace {

struct Scan {
  const float *x, *delta, *A, *B, *C, *D, *z, *bias;  // null: absent
  const float* initial;
  float* carried;
  float *y, *final, *saved;  // null: nobody reads it
  int64_t inner, bands;
  int state;
  bool softplus;
};

// One chunk of one vector of channels.
struct Tile {
  alignas(64) float delta[cpu::ScanChunk * Lanes], input[cpu::ScanChunk * Lanes], y[cpu::ScanChunk * Lanes];
  alignas(64) float decay[cpu::ScanStateMax * Lanes], h[cpu::ScanStateMax * Lanes];
};

// Δ, Δ·x, and the skip D·x that y starts from.
void prepareRows(const Scan& scan, const cpu::ChannelBlock& block, int64_t begin, int rows, Tile& tile) {
  const int lanes = block.lanes;
  const F32 bias = scan.bias ? load(scan.bias + block.channel, lanes) : set(0.0f);
  const F32 D = scan.D ? load(scan.D + block.channel, lanes) : set(0.0f);
  for (int t = 0; t < rows; t++) {
    const int64_t at = (begin + t) * scan.inner + block.channel;
    const F32 x = load(scan.x + at, lanes), raw = load(scan.delta + at, lanes) + bias;
    const F32 delta = scan.softplus ? softplus(raw) : raw;
    store(tile.delta + t * Lanes, delta);
    store(tile.input + t * Lanes, delta * x);
    store(tile.y + t * Lanes, D * x);
  }
}

void finishRows(const Scan& scan, const cpu::ChannelBlock& block, int64_t begin, int rows, const Tile& tile) {
  for (int t = 0; t < rows; t++) {
    const int64_t at = (begin + t) * scan.inner + block.channel;
    const F32 y = load(tile.y + t * Lanes);
    store(scan.y + at, scan.z ? y * silu(load(scan.z + at, block.lanes)) : y, block.lanes);
  }
}

void scanChunk(const Scan& scan, const cpu::ChannelBlock& block, int64_t begin, int rows, Tile& tile) {
  prepareRows(scan, block, begin, rows, tile);
  const int64_t band = begin * scan.bands + block.group * scan.state;
  const Pass pass{.rows = rows, .delta = tile.delta, .input = tile.input, .decay = tile.decay, .B = scan.B + band, .C = scan.C + band,
                  .bands = scan.bands, .h = tile.h, .y = tile.y, .kept = nullptr};
  eachPass(scan.state, [&]<int N>(int first) { advance<N, false>(pass, first); });
  if (scan.y) finishRows(scan, block, begin, rows, tile);
}

void scanSegment(const Scan& scan, const cpu::ChannelBlock& block, const Segment& segment, int64_t s) {
  Tile tile;
  const int64_t slotSize = scan.inner * scan.state, offset = block.channel * scan.state;
  const auto keep = [&](float* states, int64_t slot) {
    scatterLanes(tile.h, scan.state, block.lanes, states + slot * slotSize + offset);
  };
  gatherLanes(scan.A + offset, scan.state, block.lanes, 1.4426950408889634f, tile.decay);
  const float* start = scan.initial ? scan.initial + s * slotSize
                       : scan.carried && segment.from > 0 ? scan.carried + segment.from * slotSize
                                                          : nullptr;
  if (start) gatherLanes(start + offset, scan.state, block.lanes, 1.0f, tile.h);
  else std::memset(tile.h, 0, sizeof tile.h);
  int64_t chunk = ops::savedChunk(segment.begin, s);
  for (int64_t begin = segment.begin; begin < segment.end; begin += cpu::ScanChunk, chunk++) {
    if (scan.saved) keep(scan.saved, chunk);
    scanChunk(scan, block, begin, static_cast<int>(std::min<int64_t>(cpu::ScanChunk, segment.end - begin)), tile);
  }
  if (scan.final) keep(scan.final, s);
  if (scan.carried && segment.to > 0) keep(scan.carried, segment.to);
}

}  // namespace

void selectiveScan(const Call& call) {
  const auto [x, delta, A, B, C, D, z, bias, segments, initial, carried] = call.in<11>();
  const auto [y, final, saved] = call.out<3>();
  const int64_t rows = x[0], inner = x[1], state = A[1];
  const Scan scan{x.f32(), delta.f32(), A.f32(), B.f32(), C.f32(), D.f32(), z.f32(), bias.f32(), initial.f32(), carried.f32(), y.f32(),
                  final.f32(), saved.f32(), inner, B[1], static_cast<int>(state), call.attributes.flag("softplus")};
  const cpu::ChannelBlocks blocks(inner, B[1] / state, Lanes);
  const int32_t* lines = segments.i32();
  cpu::zeroSpareRows(segments, rows, inner, scan.y);
  cpu::parallel(blocks.count() * segments[0], [&](int64_t task) {
    const int64_t s = task / blocks.count();
    const cpu::ChannelBlock block = blocks.at(task % blocks.count());
    const Segment segment = segmentAt(lines, s);
    if (segment.begin < segment.end) scanSegment(scan, block, segment, s);
    else if (scan.final)
      std::memset(scan.final + (s * inner + block.channel) * state, 0, sizeof(float) * static_cast<size_t>(block.lanes * state));
  });
}

}  // namespace selscan::ISA
#else
namespace selscan::cpu {

KERNEL(selectiveScan, cpu, "x delta A B C D? z? bias? segments initial? carried?* -> y final saved; softplus",
       .run = DISPATCH(selectiveScan), .limit = ops::scanLimit, .checkInputs = ops::checkScan)

}  // namespace selscan::cpu
#endif
