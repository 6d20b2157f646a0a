// Sliding-window attention, forward. See lib/ops/attention.ts for the equations, cuda/attention.cuh for what a tile is and why bits
// do not depend on how a sequence is cut.
//
// Many rows: a block has 64 packed rows of a segment and kv head (in precision f32 32) and goes through the tiles of keys that any
// of them sees; tiles outside are not read, and only those at an edge are masked. Few rows: a block is one warp with 16 (8) of
// them. Where these are too few warps for the device, a block takes one key block of 128 positions, and a second kernel merges the
// partial softmaxes in rising order; where these would fill more than a 256th of its memory (few rows that may see hundreds of
// thousands of keys), in several launches, each of which goes on where the one before ended. All give the same bits, so that a
// launch may choose freely: by shapes, for what fills a GPU.
//
// Precision bf16 runs on tensor cores, and cp.async brings keys and values; of f32 activations a plane of bf16 is made first.
// Precision f32 is cuda/attention_floats.cuh. Spare rows and the rings are attention_rows.cu's, which writes only
// positions that nobody reads from a ring in this run.
//
// Floors: for many rows 4·rows·window·heads·headDim operations of tensor cores, and rows·window·heads exponentials; for few rows
// the 2·window·kvHeads·headDim elements of a sequence's ring. Tiles at the edges add about (64 + 64/group)/window to the former;
// splitting moves 8·rows·heads·headDim bytes more for each key block. What a ring could hold is split, not what it holds yet: in an
// empty ring of 131,072 positions 1023 of 1024 blocks find nothing to do. Not measured on a GPU yet.
#include <algorithm>

#include "cuda/attention_floats.cuh"
#include "cuda/attention_forward.cuh"
#include "cuda/attention_rows.cuh"
#include "cuda/planes.cuh"

namespace selscan::cuda {
namespace {

using namespace attention;

// The key blocks of a launch, after what launches before it left, for each row and head: a thread has a column, and adds them up in
// rising order. A greatest score does not depend on the order, so each lane finds that of all blocks up to one of 32, and its
// weights: what is in series is two multiply-adds for each block, and loads wait for nothing.
// registers: 64
__global__ __launch_bounds__(ops::HeadDimMax) void mergeBlocks(const __grid_constant__ Forward forward) {
  constexpr int AtOnce = 16;
  const Geometry& g = forward.g;
  const Partial& partial = forward.partial;
  const int row = static_cast<int>(blockIdx.x) / g.heads, head = static_cast<int>(blockIdx.x) % g.heads;
  const int column = min(static_cast<int>(threadIdx.x), g.headDim - 1);  // some have the last one, too: loads without a predicate
  const bool mine = static_cast<int>(threadIdx.x) == column;
  const Sequence sequence = sequenceOf(g, row);
  if (sequence.rows == 0) return;
  // The row's key blocks, counted from the launch's first one.
  const int64_t position = sequence.position + row - sequence.begin;
  const int64_t base = sequence.firstSeen(g, sequence.position) / KeyBlock + partial.parts.first;
  const auto first = static_cast<int>(sequence.firstSeen(g, position) / KeyBlock - base), last = static_cast<int>(position / KeyBlock - base);
  const int begin = max(first, 0), end = min(last + 1, partial.parts.count);
  if (begin >= end) return;
  const int64_t entry = partial.at(g, row, head, 0);
  // Launches take turns with two entries: a warp may be done before another has read what it starts from.
  const int launch = partial.parts.first / partial.parts.count;
  const int64_t from = entry + partial.parts.count + (launch + 1) % 2, to = entry + partial.parts.count + launch % 2;
  float* const sums = reinterpret_cast<float*>(partial.sums.data) + column;
  Softmax all = first < 0 ? partial.softmax[from] : Softmax{};
  float sum = first < 0 ? sums[from * g.headDim] : 0.0f;
#pragma unroll 1
  for (int part = begin; part < end; part += 32) {
    const int count = min(32, end - part);  // lanes beyond have no keys, which change no bit
    const Softmax softmax = laneIndex() < count ? partial.softmax[entry + part + laneIndex()] : Softmax{};
    float greatest = fmaxf(all.greatest, softmax.greatest);
#pragma unroll
    for (int apart = 1; apart < 32; apart *= 2) greatest = fmaxf(greatest, __shfl_up_sync(~0u, greatest, apart));
    const float before = __shfl_up_sync(~0u, greatest, 1);
    const Weights weights = weightsOf(laneIndex() == 0 ? all.greatest : before, softmax.greatest, greatest);
    all.greatest = __shfl_sync(~0u, greatest, 31);
#pragma unroll 1
    for (int lane = 0; lane < count; lane += AtOnce) {
      const float* next = sums + (entry + part + lane) * g.headDim;
      float own[AtOnce];
#pragma unroll
      for (int i = 0; i < AtOnce; i++) {
        own[i] = *next;
        if (lane + i + 1 < count) next += g.headDim;  // lanes beyond `count` weigh the last one by 0
      }
#pragma unroll
      for (int i = 0; i < AtOnce; i++) {
        const Weights w{__shfl_sync(~0u, weights.kept, lane + i), __shfl_sync(~0u, weights.added, lane + i)};
        sum = w(sum, own[i]);
        all.sum = w(all.sum, __shfl_sync(~0u, softmax.sum, lane + i));
      }
    }
  }
  if (last >= partial.parts.count) {  // the next launch goes on
    if (threadIdx.x == 0) partial.softmax[to] = all;
    if (mine) sums[to * g.headDim] = sum;
    return;
  }
  if (forward.lse && threadIdx.x == 0) forward.lse[int64_t{row} * g.heads + head] = logOf(all);
  if (mine && forward.y) forward.y.store<1>(row * g.width() + int64_t{head} * g.headDim + column, {finished(sum, 1.0f / all.sum)});
}

// The tiles of both precisions; Warps is 1, or 4 for many rows, which floats of 256 columns leave no registers for.
template <int Width, int Warps>
struct Tiles {
  using Halves = ForwardTile<Width, Warps>;
  using Floats = FloatTile<Width, Width == 256 && Warps == 4 ? 2 : Warps>;
};

// How a call is launched, from its shapes and the device.
struct Plan {
  Geometry g;
  bool halves, many;  // many: rows
  int width, warps = 0, warpRows = 0;
  size_t sharedBytes = 0;
  int64_t slots, parts = 0;  // parts: key blocks; 0: not split
  int64_t atOnce = 0;        // of them in a launch

  explicit Plan(const Call& call)
      : g(geometryOf(call, call.inputs[0], call.inputs[1], call.inputs[2], call.inputs[3])),
        halves(ops::precisionOf(call.attributes) == ops::Precision::bf16), width(paddedHead(g.headDim)) {
    const CudaDevice& device = deviceOf(call);
    // What a used line has on average, where no more lines are used than there are rows.
    const int64_t packed = int64_t{g.rows} * g.group, sequences = std::max(1, std::min(g.lines, g.rows));
    many = packed >= 2 * (halves ? 16 : FloatRows) * sequences;
    takeTiles();
    if (sharedBytes > device.sharedBytesMax()) many = false, takeTiles();
    const int64_t tileRows = int64_t{warps} * warpRows;
    slots = tileSlots(g, tileRows, g.group);
    int64_t keys = std::max<int64_t>(g.capacity, g.rows);  // that one sequence can see in this run
    if (g.window > 0) keys = std::min<int64_t>(keys, g.window - 1 + g.rows);
    const int64_t blocks = ceilDiv(std::max<int64_t>(keys - 1, 0), KeyBlock) + 1;
    const int64_t tiles = std::max(ceilDiv(packed, tileRows), sequences);
    if (blocks > 1 && tiles * g.kvHeads * warps < device.multiprocessors() * warpsEnough(device.sharedBytesMax()))
      parts = blocks, atOnce = std::clamp<int64_t>(device.totalBytes() / PartialShare / (pairs() * partialBytes()), 1, parts);
  }
  template <class Body>
  void withTiles(Body&& body) const {
    withWidth(width, [&]<int Width>() {
      if (many) body.template operator()<Tiles<Width, 4>>();
      else body.template operator()<Tiles<Width, 1>>();
    });
  }
  void takeTiles() {
    withTiles([&]<class T>() {
      if (halves) warps = T::Halves::Warps, warpRows = 16, sharedBytes = T::Halves::SharedBytes;
      else warps = T::Floats::Warps, warpRows = FloatRows, sharedBytes = T::Floats::ForwardBytes;
    });
  }
  // Warps of a multiprocessor that are enough not to split keys: one for each of its 4 schedulers, as far as shared memory holds their
  // blocks. On tensor cores many rows move about as long, 8 bytes for 2·KeyBlock multiply-adds, as they multiply: they are split
  // where otherwise more than half of the device has nothing to do.
  int64_t warpsEnough(size_t sharedMost) const {
    constexpr size_t Reserved = 1024;  // of a block
    if (halves && many) return 2;
    return std::clamp<int64_t>(sharedMost / (sharedBytes + Reserved) * warps, 1, 4);
  }
  // Partial sums take at most this part of the device's memory; key blocks beyond are another launch's.
  static constexpr size_t PartialShare = 256;
  int64_t blocks() const { return slots * g.kvHeads * std::max<int64_t>(atOnce, 1); }
  int64_t pairs() const { return int64_t{g.rows} * g.heads; }
  int64_t entries() const { return atOnce < parts ? atOnce + 2 : atOnce; }
  int64_t partialBytes() const { return static_cast<int64_t>(sizeof(Softmax)) + g.headDim * 4; }
  size_t workspaceBytes() const { return static_cast<size_t>(pairs() * entries() * partialBytes()); }
};

Forward forwardOf(const Call& call, const Plan& plan) {
  const auto [qkv, segments, rings, keys, values] = call.in<5>();
  const auto [y, lse] = call.out<2>();
  const Planes plane = plan.halves ? planesOf(call, 0) : Planes{};
  Partial partial;
  if (plan.parts > 0) {
    partial.softmax = reinterpret_cast<Softmax*>(call.workspace);
    partial.sums = AnyFloat(reinterpret_cast<float*>(partial.softmax + plan.pairs() * plan.entries()));
    partial.parts.count = static_cast<int>(plan.atOnce);
    partial.entries = static_cast<int>(plan.entries());
  }
  return {.g = plan.g,
          .qkv = AnyFloat(qkv),
          .y = AnyFloat(y),
          .plane = plane.data,
          .stride = plane.stride,
          .keys = keys.data,
          .values = values.data,
          .lse = lse.f32(),
          .partial = partial,
          .vectors = plan.g.headDim % (plan.halves ? 8 : 4) == 0};
}

void attend(CudaDevice& device, const Plan& plan, const Forward& forward) {
  plan.withTiles([&]<class T>() {
    const Grid grid{static_cast<unsigned>(plan.blocks()), static_cast<unsigned>(plan.warps * 32), plan.sharedBytes};
    if (plan.halves) launch(device, grid, attendHalves<typename T::Halves>, forward);
    else launch(device, grid, attendFloats<typename T::Floats>, forward);
  });
}

void run(const Call& call) {
  const auto [y, lse] = call.out<2>();
  const Plan plan(call);
  Forward forward = forwardOf(call, plan);
  CudaDevice& device = deviceOf(call);
  if ((y || lse) && plan.parts == 0) attend(device, plan, forward);
  for (int64_t first = 0; (y || lse) && first < plan.parts; first += plan.atOnce) {
    forward.partial.parts.first = static_cast<int>(first);
    attend(device, plan, forward);
    launch(device, {static_cast<unsigned>(plan.pairs()), static_cast<unsigned>(ceilDiv(plan.g.headDim, 32) * 32)}, mergeBlocks, forward);
  }
  finishRows(device, {.g = plan.g,
                      .qkv = AnyFloat(call.inputs[0]),
                      .keys = AnyFloat(call.inputs[3]),
                      .values = AnyFloat(call.inputs[4]),
                      .spare = AnyFloat(y),
                      .columns = plan.g.width(),
                      .lse = lse.f32()});
}

std::string limit(const Call& call) {
  if (const std::string wrong = ops::attentionLimit(call); !wrong.empty()) return wrong;
  const std::string wrong = packedLimit(call, call.inputs[0][0]);
  return wrong.empty() ? launchLimit(Plan(call).blocks()) : wrong;
}

KERNEL(slidingAttention, cuda, "qkv segments rings? keys?* values?* -> y lse; heads kvHeads headDim window precision", .run = run,
       .limit = limit, .workspaceBytes = [](const Call& call) { return Plan(call).workspaceBytes(); },
       .prepare = [](const Call& call, int input) { return input == 0 ? halfPlane(call, input) : nullptr; },
       .checkInputs = ops::checkAttention)

}  // namespace
}  // namespace selscan::cuda
