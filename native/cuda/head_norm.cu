// Gated RMS normalisation of heads, forward and backward. See lib/ops/head-norm.ts for the equations.
//
// A head of a row is one warp's, which goes through its columns twice, in vectors of 4 where the head has so many; the second time they
// come from L1. Backward: a block has 64 to 512 neighbouring heads, every warp a line of dweight in shared memory, of which a lane
// has its own columns; the warps' lines are added in order, then those of the blocks, in f64. All is cut by shape alone.
// Bound by memory: 3 elements moved for each forward, 5 backward. Not measured on a GPU yet.
#include <algorithm>

#include "cuda/math.cuh"
#include "cuda/partials.cuh"
#include "ops/head_norm.h"

namespace selscan::cuda {
namespace {

constexpr unsigned Threads = 256;
constexpr int Warps = Threads / 32, Vector = 4;

template <class T>
struct HeadNorm {
  const T *x, *gate;
  const float* weight;
  T* y;         // null: nobody reads it
  float* rstd;  // likewise
  int64_t heads;  // of all rows
  int value;
  float eps;
};

// body(e) for the first of each N columns that this lane has.
template <int N, class Body>
__device__ __forceinline__ void eachColumn(int value, Body body) {
#pragma unroll 4
  for (int e = laneIndex() * N; e < value; e += 32 * N) body(e);
}

// registers: 64
template <class T, int N>
__global__ __launch_bounds__(Threads) void normaliseHeads(HeadNorm<T> norm) {
  for (int64_t head = int64_t{blockIdx.x} * Warps + warpIndex(); head < norm.heads; head += int64_t{gridDim.x} * Warps) {
    const int64_t at = head * norm.value;
    float squares = 0.0f;
    eachColumn<N>(norm.value, [&](int e) {
      float x[N];
      loadVec<N>(norm.x + at + e, x);
#pragma unroll
      for (int k = 0; k < N; k++) squares = fmaf(x[k], x[k], squares);
    });
    squares = overWarp(Sum{}, squares);
    const float scale = 1.0f / sqrtf(squares / static_cast<float>(norm.value) + norm.eps);
    if (norm.rstd && laneIndex() == 0) norm.rstd[head] = scale;
    if (!norm.y) continue;
    eachColumn<N>(norm.value, [&](int e) {
      float x[N], gate[N], weight[N];
      loadVec<N>(norm.x + at + e, x);
      loadVec<N>(norm.gate + at + e, gate);
      loadVec<N>(norm.weight + e, weight);
#pragma unroll
      for (int k = 0; k < N; k++) x[k] = x[k] * scale * weight[k] * silu(gate[k]);
      storeGlobal<N>(norm.y + at + e, x);
    });
  }
}

template <class T>
void normalise(const Call& call) {
  const auto [x, gate, weight] = call.in<3>();
  const auto [y, rstd] = call.out<2>();
  const HeadNorm<T> norm{dataOf<T>(x), dataOf<T>(gate), weight.f32(), dataOf<T>(y), rstd.f32(), x.elements() / weight[0],
                         static_cast<int>(weight[0]), static_cast<float>(call.attributes.number("eps"))};
  constexpr int64_t BlocksMost = 1 << 20;
  const Grid grid{static_cast<unsigned>(std::min(BlocksMost, ceilDiv(norm.heads, Warps))), Threads};
  launch(deviceOf(call), grid, norm.value % Vector == 0 ? normaliseHeads<T, Vector> : normaliseHeads<T, 1>, norm);
}

void gatedHeadNorm(const Call& call) {
  withType(call.inputs[0].dtype, [&]<class T>() { normalise<T>(call); });
}

// Heads of a block of the gradient: at most 512, fewer while that leaves less than BlocksEnough blocks.
int64_t headBlock(int64_t heads) {
  constexpr int64_t Most = 512, BlocksEnough = 1024;  // some 8 for each of an H200's multiprocessors
  int64_t block = 64;
  while (block < Most && ceilDiv(heads, 2 * block) >= BlocksEnough) block *= 2;
  return block;
}

template <class T>
struct HeadNormGrad {
  const T *dy, *x, *gate;
  const float *weight, *rstd;
  T *dx, *dgate;   // null: nobody reads it
  float* partial;  // (blocks, value); null: nobody reads dweight
  int64_t heads, block;
  int value;
};

// registers: 64
template <class T, int N>
__global__ __launch_bounds__(Threads) void normaliseHeadsGrad(HeadNormGrad<T> norm) {
  SHARED(float, lines);  // (Warps, value)
  float* const line = norm.partial ? lines + warpIndex() * norm.value : nullptr;
  if (line)
    eachColumn<N>(norm.value, [&](int e) {
#pragma unroll
      for (int k = 0; k < N; k++) line[e + k] = 0.0f;
    });
  const int64_t begin = int64_t{blockIdx.x} * norm.block, end = min(norm.heads, begin + norm.block);
#pragma unroll 1
  for (int64_t head = begin + warpIndex(); head < end; head += Warps) {
    const int64_t at = head * norm.value;
    const float scale = norm.rstd[head];
    float dot = 0.0f;
    // dn = dy·silu(gate), x̂ and the weight of N columns.
    const auto load = [&](int e, float (&dy)[N], float (&gate)[N], float (&normal)[N], float (&weight)[N]) {
      loadVec<N>(norm.dy + at + e, dy);
      loadVec<N>(norm.gate + at + e, gate);
      loadVec<N>(norm.x + at + e, normal);
      loadVec<N>(norm.weight + e, weight);
#pragma unroll
      for (int k = 0; k < N; k++) normal[k] *= scale;
    };
    eachColumn<N>(norm.value, [&](int e) {
      float dy[N], gate[N], normal[N], weight[N];
      load(e, dy, gate, normal, weight);
#pragma unroll
      for (int k = 0; k < N; k++) dot = fmaf(dy[k] * silu(gate[k]) * weight[k], normal[k], dot);
    });
    const float mean = overWarp(Sum{}, dot) / static_cast<float>(norm.value);
    eachColumn<N>(norm.value, [&](int e) {
      float dy[N], gate[N], normal[N], weight[N], dx[N], dgate[N];
      load(e, dy, gate, normal, weight);
#pragma unroll
      for (int k = 0; k < N; k++) {
        const float through = dy[k] * silu(gate[k]);
        if (line) line[e + k] = fmaf(through, normal[k], line[e + k]);
        dx[k] = scale * fmaf(through, weight[k], -normal[k] * mean);
        dgate[k] = dy[k] * normal[k] * weight[k] * siluGrad(gate[k]);
      }
      if (norm.dx) storeGlobal<N>(norm.dx + at + e, dx);
      if (norm.dgate) storeGlobal<N>(norm.dgate + at + e, dgate);
    });
  }
  if (!norm.partial) return;
  __syncthreads();
  for (int e = static_cast<int>(threadIdx.x); e < norm.value; e += static_cast<int>(Threads)) {
    float sum = 0.0f;
#pragma unroll
    for (int warp = 0; warp < Warps; warp++) sum += lines[warp * norm.value + e];
    norm.partial[blockIdx.x * int64_t{norm.value} + e] = sum;
  }
}

struct PutWeight {
  float* dweight;
  __device__ void operator()(int64_t column, float sum) const { dweight[column] = sum; }
};

int64_t headsOf(const Call& call) { return call.inputs[1].elements() / call.inputs[3][0]; }

template <class T>
void normaliseGrad(const Call& call) {
  const auto [dy, x, gate, weight, rstd] = call.in<5>();
  const auto [dx, dgate, dweight] = call.out<3>();
  const int64_t heads = headsOf(call), block = headBlock(heads), value = weight[0];
  auto* const partial = dweight ? reinterpret_cast<float*>(call.workspace) : nullptr;
  const HeadNormGrad<T> norm{dataOf<T>(dy), dataOf<T>(x), dataOf<T>(gate), weight.f32(), rstd.f32(), dataOf<T>(dx), dataOf<T>(dgate),
                             partial, heads, block, static_cast<int>(value)};
  const Grid grid{static_cast<unsigned>(ceilDiv(heads, block)), Threads, Warps * static_cast<size_t>(value) * sizeof(float)};
  launch(deviceOf(call), grid, value % Vector == 0 ? normaliseHeadsGrad<T, Vector> : normaliseHeadsGrad<T, 1>, norm);
  if (dweight) launchLines(deviceOf(call), partial, ceilDiv(heads, block), value, PutWeight{dweight.f32()});
}

void gatedHeadNormGrad(const Call& call) {
  withType(call.inputs[1].dtype, [&]<class T>() { normaliseGrad<T>(call); });
}

KERNEL(gatedHeadNorm, cuda, "x gate weight -> y rstd; eps", .run = gatedHeadNorm, .limit = ops::headNormLimit)
KERNEL(gatedHeadNormGrad, cuda, "dy x gate weight rstd -> dx dgate dweight", .run = gatedHeadNormGrad, .limit = ops::headNormGradLimit,
       .workspaceBytes =
           [](const Call& call) {
             const int64_t heads = headsOf(call);
             return static_cast<size_t>(ceilDiv(heads, headBlock(heads)) * call.inputs[3][0]) * sizeof(float);
           },
       // A warp reads its columns of x and gate for the last time before it writes their gradients.
       .inPlace = {{0, 1}, {1, 2}})

}  // namespace
}  // namespace selscan::cuda
