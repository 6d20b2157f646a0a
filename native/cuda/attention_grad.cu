// Gradient of sliding-window attention. See lib/ops/attention.ts for the equations, cuda/attention_backward.cuh for the loop.
//
// D[i] = dy[i]·y[i] comes first. Then some blocks own 64 packed rows and go through the keys that these see, for dq; others own 64
// keys of the run and go through the packed rows that see them, for dk and dv. Scores are computed twice for it, but no
// sum is two blocks' work, and each has the order of its segment's rows. p comes from lse. Keys of a ring are in the stream of dq and own
// nothing. In precision f32 a block owns 32 lines (at 256 columns 8), in bf16 at 256 columns 32.
//
// Bound by the tensor cores: 3 products for dq and 4 for dk and dv (6 at 256 columns), each of 2·rows·window·heads·headDim
// operations, and 2·rows·window·heads exponentials. The floor is 5 products: a single pass, which would have to add dq atomically or
// keep rows·headDim partial sums for each tile of keys. Not measured on a GPU yet.
#include "cuda/attention_backward_floats.cuh"
#include "cuda/attention_rows.cuh"
#include "cuda/planes.cuh"

namespace selscan::cuda {
namespace {

using namespace attention;

constexpr unsigned DotThreads = 128;
constexpr int DotStride = 33;  // of 32 columns in shared memory: neighbouring lanes read lines, and write columns, of other banks

// A lane's D is of one row and head; a warp brings 32 columns of its 32 at a time through shared memory. Columns are summed in rising
// order as in multiplyRows: where a row sees one key alone, dp − D is zero in f32. `rounded`: dy in bf16, as dp takes it. The ds of a
// row add up to zero; with an exact dy here all of them would share the difference, and dq would have it times the mean of the keys.
// registers: 64
__global__ __launch_bounds__(DotThreads) void dotRows(const AnyFloat dy, const AnyFloat y, float* D, int64_t pairs, int headDim,
                                                      bool rounded) {
  SHARED(float, shared);
  float *const left = shared + warpIndex() * 2 * 32 * DotStride, *const right = left + 32 * DotStride;
  const int64_t first = int64_t{blockIdx.x} * DotThreads + warpIndex() * 32;
  const int lane = laneIndex();
  float sum = 0.0f;
  for (int column = 0; column < headDim; column += 32) {
#pragma unroll 8
    for (int i = 0; i < 32; i++) {
      float both[2][1] = {};
      const bool there = first + i < pairs && column + lane < headDim;
      const int64_t at = (first + i) * headDim + column + lane;
      if (there) dy.load<1>(at, both[0]), y.load<1>(at, both[1]);
      if (rounded) both[0][0] = toFloat(fromFloat<bf16>(both[0][0]));
      left[i * DotStride + lane] = both[0][0], right[i * DotStride + lane] = both[1][0];
    }
    __syncwarp();
#pragma unroll 8
    for (int k = 0; k < 32; k++) sum = fmaf(left[lane * DotStride + k], right[lane * DotStride + k], sum);
    __syncwarp();
  }
  if (first + lane < pairs) D[first + lane] = sum;
}

Geometry geometryOf(const Call& call) {
  return attention::geometryOf(call, call.inputs[1], call.inputs[4], call.inputs[5], call.inputs[6]);
}

bool isHalf(const Call& call) { return ops::precisionOf(call.attributes) == ops::Precision::bf16; }

Gradient gradientOf(const Call& call) {
  const auto [dy, qkv, y, lse, segments, rings, keys, values] = call.in<8>();
  const auto [dqkv] = call.out<1>();
  const Geometry g = geometryOf(call);
  const bool half = isHalf(call);
  const Planes plane = half ? planesOf(call, 1) : Planes{}, dyPlane = half ? planesOf(call, 0) : Planes{};
  return {.g = g,
          .qkv = AnyFloat(qkv),
          .dy = AnyFloat(dy),
          .dqkv = AnyFloat(dqkv),
          .plane = plane.data,
          .dyPlane = dyPlane.data,
          .stride = plane.stride,
          .dyStride = dyPlane.stride,
          .keys = keys.data,
          .values = values.data,
          .lse = lse.f32(),
          .D = reinterpret_cast<const float*>(call.workspace),
          .vectors = g.headDim % (half ? 8 : 4) == 0};
}

// Own lines of a block, and how many blocks share the columns of k and v.
struct OwnLines {
  int64_t queries, keys, halves;
};
OwnLines ownLines(const Call& call) {
  OwnLines lines;
  withWidth(paddedHead(geometryOf(call).headDim), [&]<int Width>() {
    const auto rows = int64_t{FloatGradTile<Width>::Rows};
    if (isHalf(call)) lines = {GradTile<false, Width>::Rows, GradTile<true, Width>::Rows, GradTile<true, Width>::Halves};
    else lines = {rows, rows, 1};
  });
  return lines;
}
int64_t queryBlocks(const Call& call) {
  const Geometry g = geometryOf(call);
  return tileSlots(g, ownLines(call).queries, g.group) * g.kvHeads;
}
int64_t keyBlocks(const Call& call) {
  const Geometry g = geometryOf(call);
  return tileSlots(g, ownLines(call).keys, 1) * g.kvHeads * ownLines(call).halves;
}

void run(const Call& call) {
  const auto [dqkv] = call.out<1>();
  if (!dqkv) return;
  const Gradient gradient = gradientOf(call);
  const Geometry& g = gradient.g;
  CudaDevice& device = deviceOf(call);
  const int64_t pairs = int64_t{g.rows} * g.heads;
  const Grid dots{static_cast<unsigned>(ceilDiv(pairs, DotThreads)), DotThreads, DotThreads * 2 * DotStride * sizeof(float)};
  launch(device, dots, dotRows, gradient.dy, AnyFloat(call.inputs[2]), reinterpret_cast<float*>(call.workspace), pairs, g.headDim,
         isHalf(call));
  const auto ofQueries = static_cast<unsigned>(queryBlocks(call)), ofKeys = static_cast<unsigned>(keyBlocks(call));
  withWidth(paddedHead(g.headDim), [&]<int Width>() {
    if (isHalf(call)) {
      using Queries = GradTile<false, Width>;
      using Keys = GradTile<true, Width>;
      launch(device, {ofQueries, Queries::Threads, Queries::SharedBytes}, gradQueries<Queries>, gradient);
      launch(device, {ofKeys, Keys::Threads, Keys::SharedBytes}, gradKeys<Keys>, gradient);
    } else {
      using T = FloatGradTile<Width>;
      launch(device, {ofQueries, T::Threads, T::GradBytes}, gradQueriesFloat<T>, gradient);
      launch(device, {ofKeys, T::Threads, T::GradBytes}, gradKeysFloat<T>, gradient);
    }
  });
  finishRows(device, {.g = g, .spare = AnyFloat(dqkv), .columns = g.packed()});
}

std::string limit(const Call& call) {
  if (const std::string wrong = ops::attentionGradLimit(call); !wrong.empty()) return wrong;
  const std::string wrong = packedLimit(call, call.inputs[1][0]);
  return wrong.empty() ? launchLimit(std::max(queryBlocks(call), keyBlocks(call))) : wrong;
}

KERNEL(slidingAttentionGrad, cuda, "dy qkv y lse segments rings? keys? values? -> dqkv; heads kvHeads headDim window precision",
       .run = run, .limit = limit,
       .workspaceBytes = [](const Call& call) { return static_cast<size_t>(call.inputs[3].elements()) * sizeof(float); },
       .prepare = [](const Call& call, int input) { return input < 2 ? halfPlane(call, input) : nullptr; },
       .checkInputs = ops::checkAttentionGrad)

}  // namespace
}  // namespace selscan::cuda
