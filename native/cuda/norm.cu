// RMS and layer normalisation, forward and backward. See lib/ops/norm.ts for the equations.
//
// A row is one block's, of as many warps as dim asks for: its elements stay in registers between the sums and the result, 16 a
// thread (8 in the gradient), loaded as vectors of 4; what is beyond the registers of 512 threads (a dim above 8192, 4096 in the
// gradient; half of that where dim is no multiple of 4) is read again. Sums over a row are cut by dim alone. The weight is read
// once per block, which goes from row to row; in the gradient over 8 to 64 neighbouring rows, the next of which is loaded while
// this one is summed. dweight and dbias add up in registers over the rows of a block, then over blocks, in f64.
//
// A centred row (layerNorm) is summed twice: first for a mean m as it comes, which lacks some 2⁻²³·|m| and more; then d = x − m,
// exact where x is near m, gives c = mean(d), what m lacks, and the variance mean(d²) − c², which cancels nothing as |c| is far
// below the deviation, or below what f32 resolves of x. The gradient is given m + c in one f32, and finds its own c with the sums
// that it needs anyway: Σ g·x̂ = rstd·(Σ g·d − c·Σ g).
// Bound by memory: with a residual 14 bytes an element forward, where x is f32 and y bf16, and 14 backward. Not measured on a
// GPU yet.
#include "ops/norm.h"

#include "cuda/block.cuh"
#include "cuda/partials.cuh"

namespace selscan::cuda {
namespace {

constexpr int ThreadsMost = 512, Vector = 4;
template <int N>
constexpr int ForwardElements = N == 1 ? 8 : 16;  // of a thread, in vectors of N
template <int N>
constexpr int BackwardElements = N == 1 ? 4 : 8;
constexpr int SumsMost = 3;
constexpr size_t ScratchBytes = SumsMost * WarpMax * sizeof(float);

// Sums of Count values over the block, for every thread, by the order of overBlock.
template <int Count>
__device__ __forceinline__ void sumOverBlock(float (&value)[Count], float* scratch) {
#pragma unroll
  for (int i = 0; i < Count; i++) {
    value[i] = overWarp(Sum{}, value[i]);
    if (laneIndex() == 0) scratch[i * WarpMax + warpIndex()] = value[i];
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < Count; i++)
    value[i] = overWarp(Sum{}, laneIndex() < static_cast<int>(blockDim.x / 32) ? scratch[i * WarpMax + laneIndex()] : 0.0f);
  __syncthreads();
}

// The first element that thread `t` holds in its i-th vector of N.
template <int N>
__device__ __forceinline__ int elementAt(int i) {
  return static_cast<int>(i * blockDim.x + threadIdx.x) * N;
}

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

// What a row is centred and scaled by: (x − mean − rest)·scale, mean and rest 0 in rmsNorm.
struct Level {
  float mean = 0.0f, rest = 0.0f, scale = 0.0f;
  template <bool Centred>
  __device__ __forceinline__ float apply(float x) const {
    return Centred ? (x - mean - rest) * scale : x * scale;
  }
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
    if (elementAt<N>(i) < dim) loadVec<N>(norm.weight + elementAt<N>(i), gain[i]);

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
      loadVec<N>(norm.weight + e, otherGain);
      putResult<Centred, N>(norm, at, e, level, otherGain, other);
    });
  }
}

unsigned threadsFor(int64_t dim, int64_t elements) {
  return static_cast<unsigned>(std::min<int64_t>(ThreadsMost, ceilDiv(dim, elements * 32) * 32));
}

template <bool Centred>
void launchNorm(const Call& call) {
  checkNoScalar(call);
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

// Rows of a block of the gradient: at most 64, fewer while that leaves less than BlocksEnough blocks. By the shape alone.
int64_t rowBlock(int64_t rows) {
  constexpr int64_t Most = 64, BlocksEnough = 1024;  // some 4 to 8 blocks for each of an H200's multiprocessors
  int64_t block = 8;
  while (block < Most && ceilDiv(rows, 2 * block) >= BlocksEnough) block *= 2;
  return block;
}

template <class D, class X>
struct NormGrad {
  const D* dy;        // null: zeros
  const float* dsum;  // null: zeros
  const X* x;
  const float *weight, *mean, *rstd;  // mean: of centred rows alone
  float *dx, *partial;  // null: nobody reads it; partial is (blocks, 2, dim), dweight then dbias
  int64_t rows, rowBlock;
  int dim;
};

template <int N, class T>
__device__ __forceinline__ void loadOrZeros(const T* from, int64_t at, float (&to)[N]) {
#pragma unroll
  for (int k = 0; k < N; k++) to[k] = 0.0f;
  if (from) loadVec<N>(from + at, to);
}

// One row's elements of a thread.
template <int Items, int N>
struct RowGrad {
  float dy[Items][N], x[Items][N];
  template <class D, class X>
  __device__ __forceinline__ void load(const NormGrad<D, X>& norm, int64_t row) {
    const int64_t at = row * norm.dim;
#pragma unroll
    for (int i = 0; i < Items; i++) {
      if (elementAt<N>(i) >= norm.dim) continue;
      loadOrZeros<N>(norm.dy, at + elementAt<N>(i), dy[i]);
      loadVec<N>(norm.x + at + elementAt<N>(i), x[i]);
    }
  }
};

// Of a row: mean(g) and mean(g·x̂) beside its statistics.
struct Slopes {
  Level row;
  float level = 0.0f, slope = 0.0f;
};

// dx of N elements, and their part of dweight and dbias.
template <bool Centred, int N>
__device__ __forceinline__ void gradElements(const Slopes& s, const float (&gain)[N], const float (&dy)[N], const float (&x)[N],
                                             float (&gains)[N], float (&shifts)[N], float (&dx)[N]) {
#pragma unroll
  for (int k = 0; k < N; k++) {
    const float normal = s.row.apply<Centred>(x[k]);
    gains[k] = fmaf(dy[k], normal, gains[k]);
    shifts[k] += dy[k];
    const float away = Centred ? fmaf(-normal, s.slope, -s.level) : -normal * s.slope;
    dx[k] = fmaf(s.row.scale, fmaf(dy[k], gain[k], away), dx[k]);
  }
}

// Adds Σ g·d, and in a centred row Σ g and Σ d, with g = dy·weight and d = x − mean.
template <bool Centred, int N, int Count>
__device__ __forceinline__ void addSums(float mean, const float (&gain)[N], const float (&dy)[N], const float (&x)[N],
                                        float (&sums)[Count]) {
#pragma unroll
  for (int k = 0; k < N; k++) {
    const float through = dy[k] * gain[k], deviation = Centred ? x[k] - mean : x[k];
    sums[0] = fmaf(through, deviation, sums[0]);
    if constexpr (Centred) {
      sums[1] += through;
      sums[2] += deviation;
    }
  }
}
template <int Count>
__device__ __forceinline__ Slopes slopesOf(float mean, float scale, int dim, float (&sums)[Count], float* scratch) {
  sumOverBlock(sums, scratch);
  const float size = static_cast<float>(dim);
  Slopes s;
  s.row.scale = scale;
  if constexpr (Count == 1) {
    s.slope = sums[0] * scale / size;
  } else {
    s.row.mean = mean;
    s.row.rest = sums[2] / size;
    s.level = sums[1] / size;
    s.slope = fmaf(-s.row.rest, sums[1], sums[0]) * scale / size;
  }
  return s;
}

// The elements of a row beyond those in registers: their part of the sums.
template <bool Centred, int N, int Count, class D, class X>
__device__ __forceinline__ void sumsBeyond(const NormGrad<D, X>& norm, int64_t at, int beyond, float mean, float (&sums)[Count]) {
#pragma unroll 1
  for (int e = beyond; e < norm.dim; e += static_cast<int>(blockDim.x) * N) {
    float dy[N], x[N], gain[N];
    loadOrZeros<N>(norm.dy, at + e, dy);
    loadVec<N>(norm.x + at + e, x);
    loadVec<N>(norm.weight + e, gain);
    addSums<Centred, N>(mean, gain, dy, x, sums);
  }
}
// Their dx, and their sums over rows, which lie in the block's line of partial sums from its first row on.
template <bool Centred, int N, class D, class X>
__device__ __forceinline__ void gradBeyond(const NormGrad<D, X>& norm, int64_t at, int beyond, const Slopes& s, float* line, bool first) {
#pragma unroll 1
  for (int e = beyond; e < norm.dim; e += static_cast<int>(blockDim.x) * N) {
    float dy[N], x[N], gain[N], dx[N], gains[N], shifts[N];
    loadOrZeros<N>(norm.dy, at + e, dy);
    loadVec<N>(norm.x + at + e, x);
    loadVec<N>(norm.weight + e, gain);
    loadOrZeros<N>(norm.dsum, at + e, dx);
    loadOrZeros<N>(first ? nullptr : line, e, gains);
    loadOrZeros<N>(first ? nullptr : line, norm.dim + e, shifts);
    gradElements<Centred, N>(s, gain, dy, x, gains, shifts, dx);
    if (norm.dx) storeGlobal<N>(norm.dx + at + e, dx);
    if (!line) continue;
    storeGlobal<N>(line + e, gains);
    storeGlobal<N>(line + norm.dim + e, shifts);
  }
}

// registers: 128
template <bool Centred, class D, class X, int N>
__global__ __launch_bounds__(ThreadsMost, 1) void normaliseGrad(NormGrad<D, X> norm) {
  constexpr int Items = BackwardElements<N> / N;
  SHARED(float, scratch);
  const int dim = norm.dim, beyond = elementAt<N>(Items);
  const int64_t begin = int64_t{blockIdx.x} * norm.rowBlock, end = min(norm.rows, begin + norm.rowBlock);
  float* line = norm.partial ? norm.partial + int64_t{blockIdx.x} * 2 * dim : nullptr;
  float gain[Items][N], gains[Items][N] = {}, shifts[Items][N] = {};
#pragma unroll
  for (int i = 0; i < Items; i++)
    if (elementAt<N>(i) < dim) loadVec<N>(norm.weight + elementAt<N>(i), gain[i]);

  RowGrad<Items, N> next;
  next.load(norm, begin);
  for (int64_t row = begin; row < end; row++) {
    const int64_t at = row * dim;
    const RowGrad<Items, N> now = next;
    float dx[Items][N];  // dsum at first, loaded before the sum is waited for
#pragma unroll
    for (int i = 0; i < Items; i++)
      if (elementAt<N>(i) < dim) loadOrZeros<N>(norm.dx ? norm.dsum : nullptr, at + elementAt<N>(i), dx[i]);
    if (row + 1 < end) next.load(norm, row + 1);
    const float mean = Centred ? norm.mean[row] : 0.0f;
    float sums[Centred ? 3 : 1] = {};
#pragma unroll
    for (int i = 0; i < Items; i++)
      if (elementAt<N>(i) < dim) addSums<Centred, N>(mean, gain[i], now.dy[i], now.x[i], sums);
    sumsBeyond<Centred, N>(norm, at, beyond, mean, sums);
    const Slopes slopes = slopesOf(mean, norm.rstd[row], dim, sums, scratch);
#pragma unroll
    for (int i = 0; i < Items; i++) {
      if (elementAt<N>(i) >= dim) continue;
      gradElements<Centred, N>(slopes, gain[i], now.dy[i], now.x[i], gains[i], shifts[i], dx[i]);
      if (norm.dx) storeGlobal<N>(norm.dx + at + elementAt<N>(i), dx[i]);
    }
    gradBeyond<Centred, N>(norm, at, beyond, slopes, line, row == begin);
  }

  if (!line) return;
#pragma unroll
  for (int i = 0; i < Items; i++) {
    if (elementAt<N>(i) >= dim) continue;
    storeGlobal<N>(line + elementAt<N>(i), gains[i]);
    storeGlobal<N>(line + dim + elementAt<N>(i), shifts[i]);
  }
}

// Where column e of the partial sums goes: dweight's, then dbias's.
struct PutSums {
  float *dweight, *dbias;  // null: nobody reads it
  int64_t dim;
  __device__ void operator()(int64_t column, float sum) const {
    float* const to = column < dim ? dweight : dbias;
    if (to) to[column % dim] = sum;
  }
};

template <bool Centred>
void launchNormGrad(const Call& call) {
  checkNoScalar(call);
  const Tensor &dy = call.inputs[0], &dsum = call.inputs[1], &x = call.inputs[2], &weight = call.inputs[3], &rstd = call.inputs.back();
  const float* const mean = Centred ? call.inputs[4].f32() : nullptr;
  const auto [dx, dweight, dbias] = call.out<3>();
  CudaDevice& device = deviceOf(call);
  const int64_t rows = x[0], dim = x[1], block = rowBlock(rows), blocks = ceilDiv(rows, block);
  const bool sums = dweight || dbias, vectors = dim % Vector == 0;
  float* partial = sums ? reinterpret_cast<float*>(call.workspace) : nullptr;
  const Grid grid{static_cast<unsigned>(blocks), threadsFor(dim, vectors ? BackwardElements<Vector> : BackwardElements<1>), ScratchBytes};
  withType(dy ? dy.dtype : x.dtype, [&, dx = dx]<class D>() {
    withType(x.dtype, [&]<class X>() {
      const NormGrad<D, X> norm{dataOf<D>(dy), dsum.f32(), dataOf<X>(x), weight.f32(), mean, rstd.f32(), dx.f32(), partial, rows, block,
                                static_cast<int>(dim)};
      launch(device, grid, vectors ? normaliseGrad<Centred, D, X, Vector> : normaliseGrad<Centred, D, X, 1>, norm);
    });
  });
  if (sums) launchLines(device, partial, blocks, 2 * dim, PutSums{dweight.f32(), dbias.f32(), dim});
}

size_t partialBytes(const Call& call) {
  const Tensor& x = call.inputs[2];
  return sizeof(float) * 2 * static_cast<size_t>(ceilDiv(x[0], rowBlock(x[0])) * x[1]);
}

KERNEL(rmsNorm, cuda, "x weight bias? residual? -> y sum rstd; eps dtype", .run = launchNorm<false>, .limit = ops::rmsNormLimit)
KERNEL(rmsNormGrad, cuda, "dy? dsum? x weight rstd -> dx dweight dbias", .run = launchNormGrad<false>,
       .limit = ops::rmsNormGradLimit, .workspaceBytes = partialBytes)
KERNEL(layerNorm, cuda, "x weight bias? residual? -> y sum mean rstd; eps dtype", .run = launchNorm<true>, .limit = ops::layerNormLimit)
KERNEL(layerNormGrad, cuda, "dy? dsum? x weight mean rstd -> dx dweight dbias", .run = launchNormGrad<true>,
       .limit = ops::layerNormGradLimit, .workspaceBytes = partialBytes)

}  // namespace
}  // namespace selscan::cuda
