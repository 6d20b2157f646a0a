// Selective scan, backward. See lib/ops/selective-scan.ts for the equations.
//
// A task is a stripe of channels × a part of the segments. It walks each segment's 64-row chunks from the last to the
// first; in a chunk, vector by vector of its channels: the states of all rows are computed again from the saved one and
// kept (64 rows × 16 states × one vector, 64 KB: in L2), then the rows are swept backward with the carried gradient
// dL/dh of 16 states in registers. More than 16 states take several such passes. The decays are computed again too.
// dB and dC, sums over channels, are reduced over the lanes of each vector by a transposing butterfly, added over the
// vectors of the stripe, and over stripes by a second loop; dA, dD and dbias are added over parts. All in fixed order.
//
// While one vector is swept backward, the lines of the next are fetched: rows are far apart, and each line is a miss of its own. Gate,
// softplus and their derivatives share one exponential each.
//
// AMD EPYC (Zen 5), AVX-512, one core, state 16, 2026-11-22: 9.4 ns per channel·token for 512 rows × 1024 channels, 10.6 for
// 16 × 512 × 512 (10.7 and 13.2 without the fetching and the shared exponentials). Of these, 2.5 are the decays computed again in the
// backward sweep (keeping them would double what goes through L2), 1.5 the traffic of the kept states (measured with a window that
// fits L1).
#include "cpu/selective_scan.h"
#include "cpu/threads.h"

#define EACH_ISA "cpu/selective_scan_grad.cpp"
#include "cpu/each_isa.h"

#ifdef ISA
#include "cpu/lane_tile.h"
#include "cpu/scan_tile.h"

namespace selscan::ISA {
namespace {

constexpr int Chunk = cpu::ScanChunk;

struct ScanGrad {
  const float *dy, *dfinal, *x, *delta, *B, *C, *D, *z, *bias, *saved;         // null: absent
  float *dx, *ddelta, *dA, *dB, *dC, *dD, *dz, *dbias, *dinitial;              // null: nobody reads it
  int64_t inner, bands;
  int state;
  bool softplus;
};

// One chunk of one vector of channels, and the rows of dB and dC of one stripe.
struct GradTile {
  alignas(64) float delta[Chunk * Lanes], input[Chunk * Lanes], x[Chunk * Lanes], slope[Chunk * Lanes];  // slope: dΔ/ddelta
  alignas(64) float p[Chunk * Lanes], dp[Chunk * Lanes];         // y before the gate, and its gradient
  alignas(64) float dz[Chunk * Lanes];                           // dy·silu′(z): dz without its factor p
  alignas(64) float sumB[Chunk * Lanes], sumA[Chunk * Lanes];    // Σ dh·B and Σ dh·exp(ΔA)·h·A·log2 e over the states
  alignas(64) float h[cpu::ScanStateMax * Lanes], kept[(Chunk + 1) * PassMax * Lanes];
  alignas(64) float dB[Chunk * cpu::ScanStateMax], dC[Chunk * cpu::ScanStateMax];
};

static_assert(sizeof(GradTile) <= sizeof(float) * cpu::ScanGradPlan::TileFloats);

// What accumulates for one vector of channels while a task runs: tiles in the workspace.
struct Sums {
  const float* decay;
  float *dA, *carry, *dD, *dbias;
};

#if defined(SELSCAN_AVX512)
inline F32 pairQuads(F32 a, F32 b) {  // [a0+a1, a2+a3, b0+b1, b2+b3] in quarters of the register
  return {_mm512_add_ps(_mm512_shuffle_f32x4(a.v, b.v, 0x88), _mm512_shuffle_f32x4(a.v, b.v, 0xdd))};
}
inline F32 pairHalves(F32 a, F32 b) {
  return {_mm512_add_ps(_mm512_shuffle_f32x4(a.v, b.v, 0x44), _mm512_shuffle_f32x4(a.v, b.v, 0xee))};
}
inline F32 pairTwos(F32 a, F32 b) {
  return {_mm512_add_ps(_mm512_shuffle_ps(a.v, b.v, 0x44), _mm512_shuffle_ps(a.v, b.v, 0xee))};
}
inline F32 pairOnes(F32 a, F32 b) {
  return {_mm512_add_ps(_mm512_shuffle_ps(a.v, b.v, 0x88), _mm512_shuffle_ps(a.v, b.v, 0xdd))};
}
// The sums of four vectors, 4 apart, in the four quarters, each still four partial sums.
inline F32 quarters(const F32* v) { return pairQuads(pairHalves(v[0], v[4]), pairHalves(v[8], v[12])); }
inline F32 sumLanes(const F32* v) {
  return pairOnes(pairTwos(quarters(v), quarters(v + 1)), pairTwos(quarters(v + 2), quarters(v + 3)));
}
#elif defined(SELSCAN_AVX2)
inline F32 halves(const F32* v) {
  return {_mm256_add_ps(_mm256_permute2f128_ps(v[0].v, v[4].v, 0x20), _mm256_permute2f128_ps(v[0].v, v[4].v, 0x31))};
}
inline F32 pairTwos(F32 a, F32 b) {
  return {_mm256_add_ps(_mm256_shuffle_ps(a.v, b.v, 0x44), _mm256_shuffle_ps(a.v, b.v, 0xee))};
}
inline F32 sumLanes(const F32* v) {
  const F32 a = pairTwos(halves(v), halves(v + 1)), b = pairTwos(halves(v + 2), halves(v + 3));
  return {_mm256_add_ps(_mm256_shuffle_ps(a.v, b.v, 0x88), _mm256_shuffle_ps(a.v, b.v, 0xdd))};
}
#endif

// to[n] += Σ over the lanes of v[n]
template <int N>
inline void addLaneSums(const F32 (&v)[N], float* to) {
#if defined(SELSCAN_AVX512) || defined(SELSCAN_AVX2)
  if constexpr (N == Lanes) {
    store(to, load(to) + sumLanes(v));
    return;
  }
#endif
  for (int n = 0; n < N; n++) to[n] += sum(v[n]);
}

// Backward through the rows of a chunk for N states: dh[t] = dp C + exp(Δ[t+1] A) dh[t+1].
template <int N>
inline void retreat(const Pass& pass, int first, int state, GradTile& tile, const Sums& sums) {
  float *dA = sums.dA + first * Lanes, *carry = sums.carry + first * Lanes;
  const float* decays = pass.decay + first * Lanes;
  F32 g[N];
#pragma GCC unroll 16
  for (int n = 0; n < N; n++) g[n] = load(carry + n * Lanes);
  for (int t = pass.rows - 1; t >= 0; t--) {
    const float *B = pass.B + t * pass.bands + first, *C = pass.C + t * pass.bands + first, *kept = pass.kept + t * N * Lanes;
    if (first == 0) pass.ahead.fetch(t);
    const F32 delta = load(pass.delta + t * Lanes), input = load(pass.input + t * Lanes), dp = load(tile.dp + t * Lanes);
    F32 sumB = load(tile.sumB + t * Lanes), sumA = load(tile.sumA + t * Lanes), toB[N], toC[N];
#pragma GCC unroll 16
    for (int n = 0; n < N; n++) {
      const F32 decay = load(decays + n * Lanes), dh = fma(dp, set(C[n]), g[n]);
      toC[n] = dp * load(kept + (N + n) * Lanes);
      toB[n] = dh * input;
      sumB = fma(dh, set(B[n]), sumB);
      g[n] = dh * exp2(delta * decay);
      const F32 through = g[n] * load(kept + n * Lanes);
      sumA = fma(through, decay, sumA);
      store(dA + n * Lanes, fma(through, delta, load(dA + n * Lanes)));
    }
    store(tile.sumB + t * Lanes, sumB);
    store(tile.sumA + t * Lanes, sumA);
    addLaneSums(toB, tile.dB + t * state + first);
    addLaneSums(toC, tile.dC + t * state + first);
  }
#pragma GCC unroll 16
  for (int n = 0; n < N; n++) store(carry + n * Lanes, g[n]);
}

void prepareRows(const ScanGrad& scan, const cpu::ChannelBlock& block, int64_t begin, int rows, GradTile& tile) {
  const int lanes = block.lanes;
  const F32 zero = set(0.0f), one = set(1.0f);
  const F32 bias = scan.bias ? load(scan.bias + block.channel, lanes) : zero;
  const F32 D = scan.D ? load(scan.D + block.channel, lanes) : zero;
  for (int t = 0; t < rows; t++) {
    const int64_t at = (begin + t) * scan.inner + block.channel;
    const F32 x = load(scan.x + at, lanes), raw = load(scan.delta + at, lanes) + bias;
    const F32 dy = scan.dy ? load(scan.dy + at, lanes) : zero;
    F32 slope = one;
    const F32 delta = scan.softplus ? softplus(raw, slope) : raw;
    store(tile.x + t * Lanes, x);
    store(tile.delta + t * Lanes, delta);
    store(tile.input + t * Lanes, delta * x);
    store(tile.slope + t * Lanes, slope);
    store(tile.p + t * Lanes, D * x);
    if (scan.z) {
      const F32 z = load(scan.z + at, lanes), gate = sigmoid(z);
      store(tile.dp + t * Lanes, dy * (z * gate));
      store(tile.dz + t * Lanes, dy * (gate * fma(z, one - gate, one)));  // silu′(z), of the same exponential
    } else {
      store(tile.dp + t * Lanes, dy);
    }
    store(tile.sumB + t * Lanes, zero);
    store(tile.sumA + t * Lanes, zero);
  }
}

void finishRows(const ScanGrad& scan, const cpu::ChannelBlock& block, int64_t begin, int rows, const GradTile& tile, const Sums& sums) {
  const int lanes = block.lanes;
  const F32 D = scan.D ? load(scan.D + block.channel, lanes) : set(0.0f), ln2 = set(0.6931471805599453f);
  F32 dD = load(sums.dD), dbias = load(sums.dbias);
  for (int t = rows - 1; t >= 0; t--) {
    const int64_t at = (begin + t) * scan.inner + block.channel;
    const F32 x = load(tile.x + t * Lanes), dp = load(tile.dp + t * Lanes), sumB = load(tile.sumB + t * Lanes);
    const F32 dDelta = fma(x, sumB, load(tile.sumA + t * Lanes) * ln2) * load(tile.slope + t * Lanes);
    if (scan.dx) store(scan.dx + at, fma(load(tile.delta + t * Lanes), sumB, dp * D), lanes);
    if (scan.ddelta) store(scan.ddelta + at, dDelta, lanes);
    if (scan.dz) store(scan.dz + at, load(tile.p + t * Lanes) * load(tile.dz + t * Lanes), lanes);
    dD = fma(dp, x, dD);
    dbias = dbias + dDelta;
  }
  store(sums.dD, dD);
  store(sums.dbias, dbias);
}

// What gradChunk will touch in these rows.
Ahead linesAhead(const ScanGrad& scan, const cpu::ChannelBlock& block, int64_t begin, int rows) {
  const int64_t at = begin * scan.inner + block.channel;
  const auto line = [&](auto* data) { return data ? data + at : nullptr; };
  return {.read = {line(scan.x), line(scan.delta), line(scan.z), line(scan.dy)}, .write = {line(scan.dx), line(scan.ddelta), line(scan.dz)},
          .inner = scan.inner, .rows = rows};
}

void gradChunk(const ScanGrad& scan, const cpu::ChannelBlock& block, int64_t begin, int rows, const float* start, const Ahead& ahead,
               GradTile& tile, const Sums& sums) {
  prepareRows(scan, block, begin, rows, tile);
  gatherLanes(start + block.channel * scan.state, scan.state, block.lanes, 1.0f, tile.h);
  const int64_t band = begin * scan.bands + block.group * scan.state;
  const Pass pass{.rows = rows, .delta = tile.delta, .input = tile.input, .decay = sums.decay, .B = scan.B + band, .C = scan.C + band,
                  .bands = scan.bands, .h = tile.h, .y = tile.p, .kept = tile.kept, .ahead = ahead};
  eachPass(scan.state, [&]<int N>(int first) {
    advance<N, true>(pass, first);
    retreat<N>(pass, first, scan.state, tile, sums);
  });
  finishRows(scan, block, begin, rows, tile, sums);
}

// A stripe of one group's channels × one part of the segments.
struct Task {
  const cpu::ScanGradPlan& plan;
  const cpu::ChannelBlocks& blocks;
  float* workspace;
  int64_t stripe, part, first, last;  // stripe counts over all groups; [first, last): its vectors of channels

  Task(const cpu::ScanGradPlan& plan, const cpu::ChannelBlocks& blocks, float* workspace, int64_t index)
      : plan(plan), blocks(blocks), workspace(workspace), stripe(index % (plan.groups * plan.stripes)),
        part(index / (plan.groups * plan.stripes)) {
    const int64_t group = stripe / plan.stripes, within = stripe % plan.stripes, each = blocks.blocksPerGroup;
    first = group * each + within * each / plan.stripes;
    last = group * each + (within + 1) * each / plan.stripes;
  }
  Sums sums(int64_t block) const {
    const int64_t tile = block * plan.state * Lanes, lane = block * Lanes;
    return {workspace + plan.decay() + tile, workspace + plan.dA(part) + tile, workspace + plan.carry(part) + tile,
            workspace + plan.dD(part) + lane, workspace + plan.dbias(part) + lane};
  }
  // Row `row` of dB (or dC): partial sums of the stripe, or the output itself where there is one stripe.
  float* target(int64_t offset, float* output, int64_t bands, int64_t row) const {
    if (plan.stripes > 1) return workspace + offset + (stripe * plan.rows + row) * plan.state;
    return output ? output + row * bands + stripe * plan.state : nullptr;
  }
};

void gradSegment(const ScanGrad& scan, const Task& task, const Segment& segment, int64_t s, GradTile& tile) {
  const int state = scan.state;
  const int64_t slotSize = scan.inner * state;
  for (int64_t b = task.first; b < task.last; b++) {
    const cpu::ChannelBlock block = task.blocks.at(b);
    float* carry = task.sums(b).carry;
    if (scan.dfinal) gatherLanes(scan.dfinal + s * slotSize + block.channel * state, state, block.lanes, 1.0f, carry);
    else std::memset(carry, 0, sizeof(float) * static_cast<size_t>(state * Lanes));
  }
  const int64_t chunks = (segment.end - segment.begin + Chunk - 1) / Chunk;
  for (int64_t k = chunks - 1; k >= 0; k--) {
    const int64_t begin = segment.begin + k * Chunk;
    const int rows = static_cast<int>(std::min<int64_t>(Chunk, segment.end - begin));
    const float* start = scan.saved + (ops::savedChunk(segment.begin, s) + k) * slotSize;
    if (k == chunks - 1) linesAhead(scan, task.blocks.at(task.first), begin, rows).fetchAll();
    std::memset(tile.dB, 0, sizeof(float) * static_cast<size_t>(rows * state));
    std::memset(tile.dC, 0, sizeof(float) * static_cast<size_t>(rows * state));
    for (int64_t b = task.first; b < task.last; b++) {
      const bool last = b + 1 == task.last;  // then comes the chunk before this one, which is a full one
      const Ahead ahead = !last   ? linesAhead(scan, task.blocks.at(b + 1), begin, rows)
                          : k > 0 ? linesAhead(scan, task.blocks.at(task.first), begin - Chunk, Chunk)
                                  : Ahead{};
      gradChunk(scan, task.blocks.at(b), begin, rows, start, ahead, tile, task.sums(b));
    }
    for (int t = 0; t < rows; t++) {
      const size_t bytes = sizeof(float) * static_cast<size_t>(state);
      if (float* dB = task.target(task.plan.dB(), scan.dB, scan.bands, begin + t)) std::memcpy(dB, tile.dB + t * state, bytes);
      if (float* dC = task.target(task.plan.dC(), scan.dC, scan.bands, begin + t)) std::memcpy(dC, tile.dC + t * state, bytes);
    }
  }
  if (scan.dinitial == nullptr) return;
  for (int64_t b = task.first; b < task.last; b++) {
    const cpu::ChannelBlock block = task.blocks.at(b);
    scatterLanes(task.sums(b).carry, state, block.lanes, scan.dinitial + s * slotSize + block.channel * state);
  }
}

void runTask(const ScanGrad& scan, const Task& task, const Tensor& segments, GradTile& tile) {
  const int64_t count = segments[0];
  for (int64_t b = task.first; b < task.last; b++) {
    const Sums sums = task.sums(b);
    std::memset(sums.dA, 0, sizeof(float) * static_cast<size_t>(scan.state * Lanes));
    store(sums.dD, set(0.0f));
    store(sums.dbias, set(0.0f));
  }
  for (int64_t s = task.part * count / task.plan.parts; s < (task.part + 1) * count / task.plan.parts; s++) {
    const Segment segment = segmentAt(segments.i32(), s);
    if (segment.begin < segment.end) gradSegment(scan, task, segment, s, tile);
  }
}

// Rows of dB (or dC): the stripes of each group added in order.
void addStripes(const cpu::ScanGradPlan& plan, const float* partial, int64_t begin, int64_t end, float* to) {
  if (to == nullptr) return;
  const int64_t stride = plan.rows * plan.state, bands = plan.groups * plan.state;
  for (int64_t row = begin; row < end; row++)
    for (int64_t g = 0; g < plan.groups; g++) {
      float* total = to + row * bands + g * plan.state;
      const float* from = partial + g * plan.stripes * stride + row * plan.state;
      std::memcpy(total, from, sizeof(float) * static_cast<size_t>(plan.state));
      for (int64_t k = 1; k < plan.stripes; k++)
        for (int64_t n = 0; n < plan.state; n++) total[n] += from[k * stride + n];
    }
}

// dA, dD and dbias of one vector of channels: the parts added in order, into those of part 0.
void addParts(const ScanGrad& scan, const cpu::ScanGradPlan& plan, const cpu::ChannelBlocks& blocks, float* workspace, int64_t b) {
  const cpu::ChannelBlock block = blocks.at(b);
  const auto total = [&](int64_t first, int64_t stride, int64_t vectors) {
    float* to = workspace + first + b * vectors * Lanes;
    for (int64_t i = 0; i < vectors; i++) {
      F32 sum = load(to + i * Lanes);
      for (int64_t part = 1; part < plan.parts; part++) sum = sum + load(to + part * stride + i * Lanes);
      store(to + i * Lanes, sum);
    }
    return to;
  };
  const float* dA = total(plan.dA(0), plan.padded * plan.state, plan.state);
  if (scan.dA) scatterLanes(dA, scan.state, block.lanes, scan.dA + block.channel * scan.state);
  const F32 dD = load(total(plan.dD(0), plan.padded, 1)), dbias = load(total(plan.dbias(0), plan.padded, 1));
  if (scan.dD) store(scan.dD + block.channel, dD, block.lanes);
  if (scan.dbias) store(scan.dbias + block.channel, dbias, block.lanes);
}

}  // namespace

void selectiveScanGrad(const Call& call) {
  const auto [dy, dfinal, x, delta, A, B, C, D, z, bias, segments, saved] = call.in<12>();
  const auto [dx, ddelta, dA, dB, dC, dD, dz, dbias, dinitial] = call.out<9>();
  const int64_t rows = x[0], inner = x[1], bands = B[1], state = A[1];
  const ScanGrad scan{dy.f32(), dfinal.f32(), x.f32(), delta.f32(), B.f32(), C.f32(), D.f32(), z.f32(), bias.f32(), saved.f32(),
                      dx.f32(), ddelta.f32(), dA.f32(), dB.f32(), dC.f32(), dD.f32(), z ? dz.f32() : nullptr, dbias.f32(), dinitial.f32(),
                      inner, bands, static_cast<int>(state), call.attributes.flag("softplus")};
  const cpu::ScanGradPlan plan(A, B, segments);
  const cpu::ChannelBlocks blocks(inner, plan.groups, Lanes);
  auto* workspace = reinterpret_cast<float*>(call.workspace);
  cpu::parallel(blocks.count(), [&](int64_t b) {
    const cpu::ChannelBlock block = blocks.at(b);
    float* decay = workspace + plan.decay() + b * state * Lanes;
    gatherLanes(A.f32() + block.channel * state, scan.state, block.lanes, 1.4426950408889634f, decay);
  });
  cpu::parallel(plan.workers(), [&](int64_t worker) {
    auto& tile = *reinterpret_cast<GradTile*>(workspace + plan.tiles() + worker * plan.TileFloats);
    for (int64_t i = worker; i < plan.tasks(); i += plan.workers()) runTask(scan, Task(plan, blocks, workspace, i), segments, tile);
  });
  if (plan.stripes > 1)
    cpu::parallel((rows + Chunk - 1) / Chunk, [&](int64_t chunk) {
      const int64_t begin = chunk * Chunk, end = std::min(rows, begin + Chunk);
      addStripes(plan, workspace + plan.dB(), begin, end, scan.dB);
      addStripes(plan, workspace + plan.dC(), begin, end, scan.dC);
    });
  cpu::parallel(blocks.count(), [&](int64_t b) { addParts(scan, plan, blocks, workspace, b); });
  for (float* perRow : {scan.dx, scan.ddelta, scan.dz}) cpu::zeroSpareRows(segments, rows, inner, perRow);
  for (float* perRow : {scan.dB, scan.dC}) cpu::zeroSpareRows(segments, rows, bands, perRow);
  if (scan.dinitial)
    for (int64_t s = 0; s < segments[0]; s++)
      if (const Segment segment = segmentAt(segments.i32(), s); segment.begin == segment.end)
        std::memset(scan.dinitial + s * inner * state, 0, sizeof(float) * static_cast<size_t>(inner * state));
}

}  // namespace selscan::ISA
#else
namespace selscan::cpu {

KERNEL(selectiveScanGrad, cpu,
       "dy? dfinal? x delta A B C D? z? bias? segments saved -> dx ddelta dA dB dC dD dz dbias dinitial; softplus",
       .run = DISPATCH(selectiveScanGrad), .limit = ops::scanGradLimit,
       .workspaceBytes = [](const Call& call) { return ScanGradPlan(call.inputs[4], call.inputs[5], call.inputs[10]).sizeBytes(); },
       .checkInputs = ops::checkScanGrad,
       // dx, ddelta and dz may take the places of x, delta and z: an element is read for the last time before its gradient is written.
       .inPlace = {{0, 2}, {1, 3}, {6, 8}})

}  // namespace selscan::cpu
#endif
