// RMS and layer normalisation, forward. See lib/ops/norm.ts for the equations, cuda/norm.cuh for how a row lies in a block.
//
// The weight is read once per block, which goes from row to row.
//
// A centred row (layerNorm) is summed twice: first for a mean m as it comes, which lacks some 2⁻²³·|m| and more; then d = x − m,
// exact where x is near m, gives c = mean(d), what m lacks, and the variance mean(d²) − c², which cancels nothing as |c| is far
// below the deviation, or below what f32 resolves of x. m + c is left as the mean, in one f32.
// Bound by memory: with a residual 14 bytes an element, where x is f32 and y bf16. Not measured on a GPU yet.
#include "cuda/norm.cuh"

namespace selscan::cuda {
namespace {

using namespace norm;

template <class X, class Y>
struct Norm {
  const X* x;
  const float *weight, *bias, *residual;  // null: absent
  Y* y;
  float *sum, *mean, *rstd;  // null: nobody reads it
  int64_t rows;
  int dim;
  float eps;
};

// x + residual of N elements from `at` on.
template <int N, class X, class Y>
__device__ __forceinline__ void addResidual(const Norm<X, Y>& norm, int64_t at, float (&value)[N]) {
  if (!norm.residual) return;
  float stream[N];
  loadVec<N>(norm.residual + at, stream);
#pragma unroll
  for (int k = 0; k < N; k++) value[k] += stream[k];
}
// The first sum: of the elements of a centred row, of the squares of another. Also writes x + residual to sum.
template <bool Centred, int N, class X, class Y>
__device__ __forceinline__ float firstSum(const Norm<X, Y>& norm, int64_t at, float (&value)[N]) {
  addResidual<N>(norm, at, value);
  if (norm.sum) storeGlobal<N>(norm.sum + at, value);
  float sum = 0.0f;
#pragma unroll
  for (int k = 0; k < N; k++) sum = Centred ? sum + value[k] : fmaf(value[k], value[k], sum);
  return sum;
}
// Adds Σ d and Σ d² with d = x − mean.
template <int N>
__device__ __forceinline__ void addDeviations(float mean, const float (&value)[N], float (&sums)[2]) {
#pragma unroll
  for (int k = 0; k < N; k++) {
    const float deviation = value[k] - mean;
    sums[0] += deviation;
    sums[1] = fmaf(deviation, deviation, sums[1]);
  }
}
template <bool Centred, int N, class X, class Y>
__device__ __forceinline__ void putResult(const Norm<X, Y>& norm, int64_t at, int e, const Level& level, const float (&gain)[N],
                                          float (&value)[N]) {
  float shift[N];
  if (norm.bias) loadVec<N>(norm.bias + e, shift);
#pragma unroll
  for (int k = 0; k < N; k++) {
    const float normal = level.apply<Centred>(value[k]);
    value[k] = norm.bias ? fmaf(normal, gain[k], shift[k]) : normal * gain[k];
  }
  storeGlobal<N>(norm.y + at + e, value);
}

// body(e, value) for the elements of the row at `at` that are beyond the registers, without the residual.
template <int N, class X, class Y, class Body>
__device__ __forceinline__ void overOthers(const Norm<X, Y>& norm, int64_t at, int beyond, Body body) {
#pragma unroll 1
  for (int e = beyond; e < norm.dim; e += static_cast<int>(blockDim.x) * N) {
    float value[N];
    loadVec<N>(norm.x + at + e, value);
    body(e, value);
  }
}

// The statistics of the row at `at`, whose first elements are in registers; `sum` is the thread's part of the first sum.
template <bool Centred, int N, int Items, class X, class Y>
__device__ __forceinline__ Level levelOf(const Norm<X, Y>& norm, int64_t at, int beyond, const float (&value)[Items][N], float sum,
                                         float* scratch) {
  const float size = static_cast<float>(norm.dim);
  float first[1] = {sum};
  sumOverBlock(first, scratch);
  Level level;
  float variance = first[0] / size;
  if constexpr (Centred) {
    level.mean = variance;
    float sums[2] = {};
#pragma unroll
    for (int i = 0; i < Items; i++)
      if (elementAt<N>(i) < norm.dim) addDeviations<N>(level.mean, value[i], sums);
    overOthers<N>(norm, at, beyond, [&](int e, float (&other)[N]) {
      addResidual<N>(norm, at + e, other);
      addDeviations<N>(level.mean, other, sums);
    });
    sumOverBlock(sums, scratch);
    level.rest = sums[0] / size;
    variance = fmaxf(fmaf(-level.rest, level.rest, sums[1] / size), 0.0f);
    variance = sums[1] == sums[1] ? variance : sums[1];  // fmaxf would hide NaN
  }
  level.scale = 1.0f / sqrtf(variance + norm.eps);
  return level;
}

// registers: 80
template <bool Centred, class X, class Y, int N>
__global__ __launch_bounds__(ThreadsMost, 1) void normalise(Norm<X, Y> norm) {
  constexpr int Items = ForwardElements<N> / N;
  SHARED(float, scratch);
  const int dim = norm.dim, beyond = elementAt<N>(Items);
  float gain[Items][N];
#pragma unroll
  for (int i = 0; i < Items; i++)
    if (elementAt<N>(i) < dim) loadGain<N>(norm.weight, elementAt<N>(i), gain[i]);

  for (int64_t row = blockIdx.x; row < norm.rows; row += gridDim.x) {
    const int64_t at = row * dim;
    float value[Items][N], sum = 0.0f;
#pragma unroll
    for (int i = 0; i < Items; i++)
      if (elementAt<N>(i) < dim) loadVec<N>(norm.x + at + elementAt<N>(i), value[i]);
#pragma unroll
    for (int i = 0; i < Items; i++)
      if (elementAt<N>(i) < dim) sum += firstSum<Centred, N>(norm, at + elementAt<N>(i), value[i]);
    overOthers<N>(norm, at, beyond, [&](int e, float (&other)[N]) { sum += firstSum<Centred, N>(norm, at + e, other); });
    const Level level = levelOf<Centred, N, Items>(norm, at, beyond, value, sum, scratch);
    if (threadIdx.x == 0) {
      if (norm.mean) norm.mean[row] = level.mean + level.rest;
      if (norm.rstd) norm.rstd[row] = level.scale;
    }
    if (!norm.y) continue;
#pragma unroll
    for (int i = 0; i < Items; i++)
      if (elementAt<N>(i) < dim) putResult<Centred, N>(norm, at, elementAt<N>(i), level, gain[i], value[i]);
    overOthers<N>(norm, at, beyond, [&](int e, float (&other)[N]) {
      float otherGain[N];
      addResidual<N>(norm, at + e, other);
      loadGain<N>(norm.weight, e, otherGain);
      putResult<Centred, N>(norm, at, e, level, otherGain, other);
    });
  }
}

template <bool Centred>
void launchNorm(const Call& call) {
  const auto [x, weight, bias, residual] = call.in<4>();
  const Tensor &y = call.outputs[0], &sum = call.outputs[1], &rstd = call.outputs.back();
  float* const mean = Centred ? call.outputs[2].f32() : nullptr;
  CudaDevice& device = deviceOf(call);
  const int64_t rows = x[0], dim = x[1];
  const bool vectors = dim % Vector == 0;
  const unsigned threads = threadsFor(dim, vectors ? ForwardElements<Vector> : ForwardElements<1>);
  const int64_t blocks = std::min(rows, int64_t{device.multiprocessors()} * 32);
  withType(x.dtype, [&, x = x, weight = weight, bias = bias, residual = residual]<class X>() {
    withType(y.dtype, [&]<class Y>() {
      const Norm<X, Y> norm{dataOf<X>(x), weight.f32(), bias.f32(), residual.f32(), dataOf<Y>(y), sum.f32(), mean, rstd.f32(), rows,
                            static_cast<int>(dim), static_cast<float>(call.attributes.number("eps"))};
      launch(device, {static_cast<unsigned>(blocks), threads, ScratchBytes},
             vectors ? normalise<Centred, X, Y, Vector> : normalise<Centred, X, Y, 1>, norm);
    });
  });
}

KERNEL(rmsNorm, cuda, "x weight? bias? residual? -> y sum rstd; eps dtype", .run = launchNorm<false>, .limit = ops::rmsNormLimit)
KERNEL(layerNorm, cuda, "x weight bias? residual? -> y sum mean rstd; eps dtype", .run = launchNorm<true>, .limit = ops::layerNormLimit)

}  // namespace
}  // namespace selscan::cuda
