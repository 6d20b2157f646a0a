// Sliding-window attention, forward. See lib/ops/attention.ts for the equations, cuda/attention.cuh for what a tile is and why bits
// do not depend on how a sequence is cut.
//
// Many rows: a block has 64 packed rows of a segment and kv head (in precision f32 32) and goes through the tiles of keys that any
// of them sees; tiles outside are not read, and only those at an edge are masked. Few rows: a block is one warp with 16 (8) of
// them and takes one key block of 256 positions; a second kernel merges the partial softmaxes in rising order. Many rows in few
// blocks are split by key blocks as well. All give the same bits, so a launch may choose freely: by shapes, for what fills a GPU.
//
// Precision bf16 runs on tensor cores, and cp.async brings keys and values; of f32 activations a plane of bf16 is made first.
// Precision f32 is cuda/attention_floats.cuh. Spare rows and the rings are attention_rows.cu's, which writes only
// positions that nobody reads from a ring in this run.
//
// Floors: for many rows 4·rows·window·heads·headDim operations of tensor cores, and rows·window·heads exponentials; for few rows
// the 2·window·kvHeads·headDim elements of a sequence's ring. Tiles at the edges add about (64 + 64/group)/window to the former;
// splitting moves 8·rows·heads·headDim bytes more for each key block. Not measured on a GPU yet.
#include <algorithm>

#include "cuda/attention_floats.cuh"
#include "cuda/attention_forward.cuh"
#include "cuda/attention_rows.cuh"
#include "cuda/planes.cuh"

namespace selscan::cuda {
namespace {

using namespace attention;

constexpr unsigned MergeThreads = 128;

// A warp for each row and head: its key blocks in rising order.
// registers: 64
__global__ __launch_bounds__(MergeThreads) void mergeBlocks(const __grid_constant__ Forward forward) {
  constexpr int Columns = static_cast<int>(ops::HeadDimMax) / 32;
  const Geometry& g = forward.g;
  const int64_t warp = int64_t{blockIdx.x} * (MergeThreads / 32) + warpIndex(), row = warp / g.heads;
  const int head = static_cast<int>(warp % g.heads);
  if (row >= g.rows) return;  // whole warps, which share nothing
  const Sequence sequence = sequenceOf(g, static_cast<int>(row));
  if (sequence.rows == 0) return;
  const int64_t position = sequence.position + row - sequence.begin;
  const int64_t base = sequence.firstSeen(g, sequence.position) / KeyBlock;
  const auto first = static_cast<int>(sequence.firstSeen(g, position) / KeyBlock - base);
  const auto last = static_cast<int>(position / KeyBlock - base);
  Softmax all;
  float sums[Columns] = {};
#pragma unroll 2
  for (int part = first; part <= last; part++) {
    const int64_t at = forward.partial.at(g, row, head, part);
    const Weights weights = merge(all, forward.partial.softmax[at]);
#pragma unroll
    for (int i = 0; i < Columns; i++) {
      const int column = 32 * i + laneIndex();
      float sum[1];
      if (column >= g.headDim) continue;
      forward.partial.sums.load<1>(at * g.headDim + column, sum);
      sums[i] = weights(sums[i], sum[0]);
    }
  }
  if (forward.lse && laneIndex() == 0) forward.lse[row * g.heads + head] = logOf(all);
  const float inverse = 1.0f / all.sum;
  if (!forward.y) return;
#pragma unroll
  for (int i = 0; i < Columns; i++) {
    const int column = 32 * i + laneIndex();
    if (column < g.headDim) forward.y.store<1>(row * g.width() + int64_t{head} * g.headDim + column, {finished(sums[i], inverse)});
  }
}

// How a call is launched, from its shapes.
struct Plan {
  Geometry g;
  bool halves;
  int width, warps;
  int64_t parts = 1, slots;
  bool split = false;

  explicit Plan(const Call& call)
      : g(geometryOf(call, call.inputs[0], call.inputs[1], call.inputs[2], call.inputs[3])),
        halves(ops::precisionOf(call.attributes) == ops::Precision::bf16), width(paddedHead(g.headDim)) {
    // What a used line has on average, where no more lines are used than there are rows.
    const int64_t packed = int64_t{g.rows} * g.group, sequences = std::max(1, std::min(g.lines, g.rows));
    warps = packed >= 2 * warpRows() * sequences ? manyWarps(deviceOf(call).sharedBytesMax()) : 1;
    slots = tileSlots(g, warps * warpRows(), g.group);
    // Fewer blocks than half a large GPU has multiprocessors are split, if partial sums stay small.
    constexpr int64_t BlocksFew = 66, PartialBytesMost = int64_t{256} << 20;
    const int64_t tiles = std::max(ceilDiv(packed, warps * warpRows()), sequences);
    int64_t keys = std::max<int64_t>(g.capacity, g.rows);  // that one sequence can see in this run
    if (g.window > 0) keys = std::min<int64_t>(keys, g.window - 1 + g.rows);
    parts = ceilDiv(std::max<int64_t>(keys - 1, 0), KeyBlock) + 1;
    split = parts > 1 && tiles * g.kvHeads < BlocksFew && partials() <= PartialBytesMost / partialBytes();
    if (!split) parts = 1;
  }
  int64_t warpRows() const { return halves ? 16 : FloatRows; }
  // Warps of a block for many rows: fewer where shared memory is small.
  int manyWarps(size_t sharedMost) const {
    if (halves) return width < 256 || ForwardTile<256, 4>::SharedBytes <= sharedMost ? 4 : 1;
    return width < 256 ? 4 : 2;
  }
  int64_t blocks() const { return slots * g.kvHeads * parts; }
  int64_t partials() const { return int64_t{g.rows} * g.heads * parts; }
  int64_t partialBytes() const { return static_cast<int64_t>(sizeof(Softmax)) + g.headDim * 4; }
  size_t workspaceBytes() const { return split ? static_cast<size_t>(partials() * partialBytes()) : 0; }
};

Forward forwardOf(const Call& call, const Plan& plan) {
  const auto [qkv, segments, rings, keys, values] = call.in<5>();
  const auto [y, lse] = call.out<2>();
  const Planes plane = plan.halves ? planesOf(call, 0) : Planes{};
  Partial partial;
  if (plan.split) {
    partial.softmax = reinterpret_cast<Softmax*>(call.workspace);
    partial.sums = AnyFloat(reinterpret_cast<float*>(partial.softmax + plan.partials()));
    partial.parts = static_cast<int>(plan.parts);
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

template <int Width, int Warps>
void attend(CudaDevice& device, const Plan& plan, const Forward& forward) {
  using Halves = ForwardTile<Width, Warps>;
  using Floats = FloatTile<Width, Width == 256 && Warps == 4 ? 2 : Warps>;  // as manyWarps has it
  const auto blocks = static_cast<unsigned>(plan.blocks());
  if (plan.halves) launch(device, {blocks, Halves::Threads, Halves::SharedBytes}, attendHalves<Halves>, forward);
  else launch(device, {blocks, Floats::Threads, Floats::ForwardBytes}, attendFloats<Floats>, forward);
}

void run(const Call& call) {
  checkNoScalar(call);
  const auto [y, lse] = call.out<2>();
  const Plan plan(call);
  const Forward forward = forwardOf(call, plan);
  CudaDevice& device = deviceOf(call);
  if (y || lse) {
    withWidth(plan.width, [&]<int Width>() {
      if (plan.warps == 1) attend<Width, 1>(device, plan, forward);
      else attend<Width, 4>(device, plan, forward);
    });
    const int64_t pairs = int64_t{plan.g.rows} * plan.g.heads;
    if (plan.split)
      launch(device, {static_cast<unsigned>(ceilDiv(pairs, MergeThreads / 32)), MergeThreads}, mergeBlocks, forward);
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

KERNEL(slidingAttention, cuda, "qkv segments rings? keys? values? -> y lse; heads kvHeads headDim window precision", .run = run,
       .limit = limit, .workspaceBytes = [](const Call& call) { return Plan(call).workspaceBytes(); },
       .prepare = [](const Call& call, int input) { return input == 0 ? halfPlane(call, input) : nullptr; },
       .checkInputs = ops::checkAttention)

}  // namespace
}  // namespace selscan::cuda
