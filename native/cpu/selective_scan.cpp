// Selective scan, forward. See lib/ops/selective-scan.ts for the equations.
//
// A task is one vector of channels × one segment, or many where segments are short; it walks the segment in chunks of 64 rows: first
// Δ = softplus(delta + bias) and Δ·x of all rows, then the recurrence with up to 16 states in registers, then the gate; the lines of
// the next chunk are fetched meanwhile. B and C are broadcast operands from L1. States are transposed between [channel][state] in
// memory and [state][lane] here, once per segment and saved chunk. Vectors of channels end at the edge of a group: with fewer than 16
// channels per group, lanes idle. A segment of one row takes its states as they lie (scanRow).
//
// The recurrence is bound by the exponentials: 9 of 12 vector instructions per state, 5.0 cycles of Zen 5 with AVX-512 or 1.25 ns per
// channel·token at state 16. The rest is softplus, gate and memory.
// AMD EPYC (Zen 5), AVX-512, 2026-11-22, a noisy machine: 512 rows × 1536 channels 1.9 to 2.3 ms on one thread (2.4 to 2.9 ns per
// channel·token), 2.2 on two; 16 × 512 rows × 512 channels with saved states 16.3 and 12.8 ms. The fetching is worth no more than that
// noise here; the gradient and the convolution gain by it. One row of 1536 channels, state in memory: 6.6 µs (36.9 with a gather of
// every number).
// Tried: 2^x from a table of 16 and a cubic polynomial (vpermps): 1.12 ns for 1.25; in pairs and fours of states: 1.17; Estrin's
// order: 1.27; exponents by integer additions in place of vscalefps: 1.26. Neighbouring vectors that walk together, 4 to 48 of them in
// stretches of 8 to 64 rows, lines fetched row by row: 1.0 to 2.1 times the time on one thread, within noise on two. Two to eight vectors
// one after the other in a task, so that threads write no neighbouring lines at a time: within noise.
#include "cpu/selective_scan.h"
#include "cpu/threads.h"

#define EACH_ISA "cpu/selective_scan.cpp"
#include "cpu/each_isa.h"

#ifdef ISA
#include "cpu/lane_tile.h"
#include "cpu/scan_tile.h"

namespace selscan::ISA {
namespace {

constexpr float Log2E = 1.4426950408889634f;
// Rows of one vector of channels that a task has where segments are short. One row of 96 vectors takes 8 µs on one core, of which memory
// could give no more to two.
constexpr int64_t TaskRows = 128;

struct Scan {
  const float *x, *delta, *A, *B, *C, *D, *z, *bias;  // null: absent
  const float* initial;
  float* carried;
  float *y, *final, *saved;  // null: nobody reads it
  int64_t inner, bands;
  int state;
  bool softplus;
};

// One chunk of one vector of channels, and what stays with the vector.
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

// What scanChunk will touch in these rows.
Ahead linesAhead(const Scan& scan, const cpu::ChannelBlock& block, int64_t begin, int rows) {
  const int64_t at = begin * scan.inner + block.channel;
  const auto line = [&](auto* data) { return data ? data + at : nullptr; };
  return {.read = {line(scan.x), line(scan.delta), line(scan.z), nullptr}, .write = {line(scan.y), nullptr, nullptr},
          .inner = scan.inner, .rows = rows};
}

void scanChunk(const Scan& scan, const cpu::ChannelBlock& block, int64_t begin, int rows, const Ahead& ahead, Tile& tile) {
  prepareRows(scan, block, begin, rows, tile);
  const int64_t band = begin * scan.bands + block.group * scan.state;
  const Pass pass{.rows = rows, .delta = tile.delta, .input = tile.input, .decay = tile.decay, .B = scan.B + band, .C = scan.C + band,
                  .bands = scan.bands, .h = tile.h, .y = tile.y, .kept = nullptr, .ahead = ahead};
  eachPass(scan.state, [&]<int N>(int first) { advance<N, false>(pass, first); });
  if (scan.y) finishRows(scan, block, begin, rows, tile);
}

// Where a segment's state comes from and goes to, at one vector of channels.
struct Places {
  const float* start;       // null: zeros
  float *final, *carried;   // null: nowhere

  Places(const Scan& scan, const cpu::ChannelBlock& block, const Segment& segment, int64_t s) {
    const int64_t slotSize = scan.inner * scan.state, offset = block.channel * scan.state;
    start = scan.initial ? scan.initial + s * slotSize + offset
            : scan.carried && segment.from > 0 ? scan.carried + segment.from * slotSize + offset
                                               : nullptr;
    final = scan.final ? scan.final + s * slotSize + offset : nullptr;
    carried = scan.carried && segment.to > 0 ? scan.carried + segment.to * slotSize + offset : nullptr;
  }
};

// One row. States are taken as they lie, a channel's after one another in a vector, until they are added up in y: every number
// goes through the operations of `advance` in their order, so that one row at a time gives the bits of many.
void scanRow(const Scan& scan, const cpu::ChannelBlock& block, int64_t row, const Places& places, Tile& tile) {
  prepareRows(scan, block, row, 1, tile);
  const float* A = scan.A + block.channel * scan.state;
  const int64_t band = row * scan.bands + block.group * scan.state;
  F32 y = load(tile.y);
  for (int first = 0; first < scan.state; first += Lanes) {
    const F32 B = load(scan.B + band + first);
    F32 h[Lanes];
#pragma GCC unroll 16
    for (int i = 0; i < Lanes; i++) {
      const int64_t at = int64_t{i} * scan.state + first;
      const F32 before = places.start ? load(places.start + at) : set(0.0f);
      h[i] = fma(exp2(set(tile.delta[i]) * (load(A + at) * set(Log2E))), before, set(tile.input[i]) * B);
      if (places.final) store(places.final + at, h[i]);
      if (places.carried) store(places.carried + at, h[i]);
    }
    transpose(h);
#pragma GCC unroll 16
    for (int n = 0; n < Lanes; n++) y = fma(h[n], set(scan.C[band + first + n]), y);
  }
  store(tile.y, y);
  if (scan.y) finishRows(scan, block, row, 1, tile);
}

void scanRows(const Scan& scan, const cpu::ChannelBlock& block, const Segment& segment, int64_t s, const Places& places, Tile& tile) {
  gatherLanes(scan.A + block.channel * scan.state, scan.state, block.lanes, Log2E, tile.decay);
  if (places.start) gatherLanes(places.start, scan.state, block.lanes, 1.0f, tile.h);
  else std::memset(tile.h, 0, sizeof tile.h);
  const auto rowsFrom = [&](int64_t row) { return static_cast<int>(std::min<int64_t>(cpu::ScanChunk, segment.end - row)); };
  linesAhead(scan, block, segment.begin, rowsFrom(segment.begin)).fetchAll();
  int64_t chunk = ops::savedChunk(segment.begin, s);
  for (int64_t begin = segment.begin; begin < segment.end; begin += cpu::ScanChunk, chunk++) {
    const int rows = rowsFrom(begin);
    float* saved = scan.saved + (chunk * scan.inner + block.channel) * scan.state;
    if (scan.saved) scatterLanes(tile.h, scan.state, block.lanes, saved);
    const int64_t next = begin + rows;
    scanChunk(scan, block, begin, rows, next < segment.end ? linesAhead(scan, block, next, rowsFrom(next)) : Ahead{}, tile);
  }
  for (float* to : {places.final, places.carried})
    if (to) scatterLanes(tile.h, scan.state, block.lanes, to);
}

void scanSegment(const Scan& scan, const cpu::ChannelBlock& block, const Segment& segment, int64_t s) {
  Tile tile;
  const int64_t rows = segment.end - segment.begin;
  const Places places(scan, block, segment, s);
  if (rows == 1 && scan.saved == nullptr && scan.state % Lanes == 0 && block.lanes == Lanes) {
    scanRow(scan, block, segment.begin, places, tile);
  } else if (rows > 0) {
    scanRows(scan, block, segment, s, places, tile);
  } else if (places.final) {
    std::memset(places.final, 0, sizeof(float) * static_cast<size_t>(block.lanes * scan.state));
  }
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
  const int64_t each = std::max<int64_t>(1, TaskRows * segments[0] / rows), tasks = (blocks.count() + each - 1) / each;
  cpu::parallel(tasks * segments[0], [&](int64_t task) {
    const int64_t s = task / tasks, first = task % tasks * each;
    for (int64_t b = first; b < std::min(blocks.count(), first + each); b++) scanSegment(scan, blocks.at(b), segmentAt(lines, s), s);
  });
}

}  // namespace selscan::ISA
#else
namespace selscan::cpu {

KERNEL(selectiveScan, cpu, "x delta A B C D? z? bias? segments initial? carried?* -> y final saved; softplus",
       .run = DISPATCH(selectiveScan), .limit = ops::scanLimit, .checkInputs = ops::checkScan)

}  // namespace selscan::cpu
#endif
