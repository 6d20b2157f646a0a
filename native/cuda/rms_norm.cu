// RMS normalisation, forward and backward. See lib/ops/rms-norm.ts for the equations.
//
// A row is one block's, of as many warps as dim asks for: its elements stay in registers between the sum of squares and the
// result, 16 a thread (8 in the gradient), loaded as vectors of 4; what is beyond the registers of 512 threads (a dim above
// 8192, 4096 in the gradient; half of that where dim is no multiple of 4) is read twice. Sums over a row are cut by dim alone.
// The weight is read once per block, which goes from row to row; in the gradient over 8 to 64 neighbouring rows, the next of
// which is loaded while this one is summed. dweight and dbias add up in registers over the rows of a block, then over blocks,
// in f64.
// Bound by memory: with a residual 14 bytes an element forward, where x is f32 and y bf16, and 14 backward. Not measured on a
// GPU yet.
#include "core/dims.h"
#include "cuda/block.cuh"
#include "cuda/partials.cuh"

namespace selscan::cuda {
namespace {

constexpr int ThreadsMost = 512, Vector = 4;
template <int N>
constexpr int ForwardElements = N == 1 ? 8 : 16;  // of a thread, in vectors of N
template <int N>
constexpr int BackwardElements = N == 1 ? 4 : 8;
constexpr size_t ScratchBytes = WarpMax * sizeof(float);

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
  float *sum, *rstd;  // null: nobody reads it
  int64_t rows;
  int dim;
  float eps;
};

// x + residual of N elements from `at` on; also written to sum. Returns their squares' sum.
template <int N, class X, class Y>
__device__ __forceinline__ float squaresOf(const Norm<X, Y>& norm, int64_t at, float (&value)[N]) {
  float squares = 0.0f;
  if (norm.residual) {
    float stream[N];
    loadVec<N>(norm.residual + at, stream);
#pragma unroll
    for (int k = 0; k < N; k++) value[k] += stream[k];
  }
  if (norm.sum) storeGlobal<N>(norm.sum + at, value);
#pragma unroll
  for (int k = 0; k < N; k++) squares = fmaf(value[k], value[k], squares);
  return squares;
}
template <int N, class X, class Y>
__device__ __forceinline__ void putResult(const Norm<X, Y>& norm, int64_t at, int e, float scale, const float (&gain)[N],
                                          float (&value)[N]) {
  float shift[N];
  if (norm.bias) loadVec<N>(norm.bias + e, shift);
#pragma unroll
  for (int k = 0; k < N; k++) {
    const float normal = value[k] * scale;
    value[k] = norm.bias ? fmaf(normal, gain[k], shift[k]) : normal * gain[k];
  }
  storeGlobal<N>(norm.y + at + e, value);
}

// registers: 80
template <class X, class Y, int N>
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
    float value[Items][N], squares = 0.0f;
#pragma unroll
    for (int i = 0; i < Items; i++)
      if (elementAt<N>(i) < dim) loadVec<N>(norm.x + at + elementAt<N>(i), value[i]);
#pragma unroll
    for (int i = 0; i < Items; i++)
      if (elementAt<N>(i) < dim) squares += squaresOf<N>(norm, at + elementAt<N>(i), value[i]);
#pragma unroll 1
    for (int e = beyond; e < dim; e += static_cast<int>(blockDim.x) * N) {
      float other[N];
      loadVec<N>(norm.x + at + e, other);
      squares += squaresOf<N>(norm, at + e, other);
    }
    squares = overBlock(Sum{}, squares, 0.0f, scratch);
    const float scale = 1.0f / sqrtf(squares / static_cast<float>(dim) + norm.eps);
    if (norm.rstd && threadIdx.x == 0) norm.rstd[row] = scale;
    if (!norm.y) continue;
#pragma unroll
    for (int i = 0; i < Items; i++)
      if (elementAt<N>(i) < dim) putResult<N>(norm, at, elementAt<N>(i), scale, gain[i], value[i]);
#pragma unroll 1
    for (int e = beyond; e < dim; e += static_cast<int>(blockDim.x) * N) {
      float other[N], otherGain[N];
      loadVec<N>(norm.x + at + e, other);
      squaresOf<N>(norm, at + e, other);
      loadVec<N>(norm.weight + e, otherGain);
      putResult<N>(norm, at, e, scale, otherGain, other);
    }
  }
}

unsigned threadsFor(int64_t dim, int64_t elements) {
  return static_cast<unsigned>(std::min<int64_t>(ThreadsMost, ceilDiv(dim, elements * 32) * 32));
}

void rmsNorm(const Call& call) {
  checkNoScalar(call);
  const auto [x, weight, bias, residual] = call.in<4>();
  const auto [y, sum, rstd] = call.out<3>();
  CudaDevice& device = deviceOf(call);
  const int64_t rows = x[0], dim = x[1];
  const bool vectors = dim % Vector == 0;
  const unsigned threads = threadsFor(dim, vectors ? ForwardElements<Vector> : ForwardElements<1>);
  const int64_t blocks = std::min(rows, int64_t{device.multiprocessors()} * 32);
  withType(x.dtype, [&, x = x, weight = weight, bias = bias, residual = residual, y = y, sum = sum, rstd = rstd]<class X>() {
    withType(y.dtype, [&]<class Y>() {
      const Norm<X, Y> norm{dataOf<X>(x), weight.f32(), bias.f32(), residual.f32(), dataOf<Y>(y), sum.f32(), rstd.f32(), rows,
                            static_cast<int>(dim), static_cast<float>(call.attributes.number("eps"))};
      launch(device, {static_cast<unsigned>(blocks), threads, ScratchBytes},
             vectors ? normalise<X, Y, Vector> : normalise<X, Y, 1>, norm);
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
  const float *weight, *rstd;
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

// dx of N elements, and their part of dweight and dbias.
template <int N>
__device__ __forceinline__ void gradElements(float scale, float mean, const float (&gain)[N], const float (&dy)[N], const float (&x)[N],
                                             float (&gains)[N], float (&shifts)[N], float (&dx)[N]) {
#pragma unroll
  for (int k = 0; k < N; k++) {
    const float normal = x[k] * scale;
    gains[k] = fmaf(dy[k], normal, gains[k]);
    shifts[k] += dy[k];
    dx[k] = fmaf(scale, fmaf(dy[k], gain[k], -normal * mean), dx[k]);
  }
}

// The elements of a row beyond those in registers: their part of Σ dy·w·x.
template <int N, class D, class X>
__device__ __forceinline__ float dotBeyond(const NormGrad<D, X>& norm, int64_t at, int beyond) {
  float dot = 0.0f;
#pragma unroll 1
  for (int e = beyond; e < norm.dim; e += static_cast<int>(blockDim.x) * N) {
    float dy[N], x[N], gain[N];
    loadOrZeros<N>(norm.dy, at + e, dy);
    loadVec<N>(norm.x + at + e, x);
    loadVec<N>(norm.weight + e, gain);
#pragma unroll
    for (int k = 0; k < N; k++) dot = fmaf(dy[k] * gain[k], x[k], dot);
  }
  return dot;
}
// Their dx, and their sums over rows, which lie in the block's line of partial sums from its first row on.
template <int N, class D, class X>
__device__ __forceinline__ void gradBeyond(const NormGrad<D, X>& norm, int64_t at, int beyond, float scale, float mean, float* line,
                                           bool first) {
#pragma unroll 1
  for (int e = beyond; e < norm.dim; e += static_cast<int>(blockDim.x) * N) {
    float dy[N], x[N], gain[N], dx[N], gains[N], shifts[N];
    loadOrZeros<N>(norm.dy, at + e, dy);
    loadVec<N>(norm.x + at + e, x);
    loadVec<N>(norm.weight + e, gain);
    loadOrZeros<N>(norm.dsum, at + e, dx);
    loadOrZeros<N>(first ? nullptr : line, e, gains);
    loadOrZeros<N>(first ? nullptr : line, norm.dim + e, shifts);
    gradElements<N>(scale, mean, gain, dy, x, gains, shifts, dx);
    if (norm.dx) storeGlobal<N>(norm.dx + at + e, dx);
    if (!line) continue;
    storeGlobal<N>(line + e, gains);
    storeGlobal<N>(line + norm.dim + e, shifts);
  }
}

// registers: 128
template <class D, class X, int N>
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
    const float scale = norm.rstd[row];
    float dot = 0.0f;
#pragma unroll
    for (int i = 0; i < Items; i++) {
      if (elementAt<N>(i) >= dim) continue;
#pragma unroll
      for (int k = 0; k < N; k++) dot = fmaf(now.dy[i][k] * gain[i][k], now.x[i][k], dot);
    }
    dot += dotBeyond<N>(norm, at, beyond);
    const float mean = overBlock(Sum{}, dot, 0.0f, scratch) * scale / static_cast<float>(dim);
#pragma unroll
    for (int i = 0; i < Items; i++) {
      if (elementAt<N>(i) >= dim) continue;
      gradElements<N>(scale, mean, gain[i], now.dy[i], now.x[i], gains[i], shifts[i], dx[i]);
      if (norm.dx) storeGlobal<N>(norm.dx + at + elementAt<N>(i), dx[i]);
    }
    gradBeyond<N>(norm, at, beyond, scale, mean, line, row == begin);
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

void rmsNormGrad(const Call& call) {
  checkNoScalar(call);
  const auto [dy, dsum, x, weight, rstd] = call.in<5>();
  const auto [dx, dweight, dbias] = call.out<3>();
  CudaDevice& device = deviceOf(call);
  const int64_t rows = x[0], dim = x[1], block = rowBlock(rows), blocks = ceilDiv(rows, block);
  const bool sums = dweight || dbias, vectors = dim % Vector == 0;
  float* partial = sums ? reinterpret_cast<float*>(call.workspace) : nullptr;
  const Grid grid{static_cast<unsigned>(blocks), threadsFor(dim, vectors ? BackwardElements<Vector> : BackwardElements<1>), ScratchBytes};
  withType(dy ? dy.dtype : x.dtype, [&, dy = dy, dsum = dsum, x = x, weight = weight, rstd = rstd, dx = dx]<class D>() {
    withType(x.dtype, [&]<class X>() {
      const NormGrad<D, X> norm{dataOf<D>(dy), dsum.f32(), dataOf<X>(x), weight.f32(), rstd.f32(), dx.f32(), partial, rows, block,
                                static_cast<int>(dim)};
      launch(device, grid, vectors ? normaliseGrad<D, X, Vector> : normaliseGrad<D, X, 1>, norm);
    });
  });
  if (sums) launchLines(device, partial, blocks, 2 * dim, PutSums{dweight.f32(), dbias.f32(), dim});
}

size_t partialBytes(const Call& call) {
  const Tensor& x = call.inputs[2];
  return sizeof(float) * 2 * static_cast<size_t>(ceilDiv(x[0], rowBlock(x[0])) * x[1]);
}

// What lies beyond a row's end by less than a block's width is still an int.
constexpr int64_t DimMost = int64_t{1} << 30;
std::string tooWide(int64_t dim) { return "dim is at most 2^30, got " + std::to_string(dim); }
std::string normLimit(const Call& call) {
  const std::string wrong = dimsMismatch(call, {"float rows dim", "dim", "? dim", "? rows dim"}, {"float rows dim", "rows dim", "rows"});
  if (!wrong.empty()) return wrong;
  if (call.inputs[0][1] > DimMost) return tooWide(call.inputs[0][1]);
  const std::string& word = call.attributes.word("dtype");
  const Dtype got = call.outputs[0].dtype;
  if (call.outputs[0].shape.rank == 0 || word == name(got) || (word == "same" && got == call.inputs[0].dtype)) return {};
  return "y has the dtype of the attribute, " + word + ", got " + name(got);
}

std::string normGradLimit(const Call& call) {
  const std::string wrong =
      dimsMismatch(call, {"? float rows dim", "? rows dim", "float rows dim", "dim", "rows"}, {"rows dim", "dim", "dim"});
  return wrong.empty() && call.inputs[2][1] > DimMost ? tooWide(call.inputs[2][1]) : wrong;
}

KERNEL(rmsNorm, cuda, "x weight bias? residual? -> y sum rstd; eps dtype", .run = rmsNorm, .limit = normLimit)
KERNEL(rmsNormGrad, cuda, "dy? dsum? x weight rstd -> dx dweight dbias", .run = rmsNormGrad,
       .limit = normGradLimit, .workspaceBytes = partialBytes)

}  // namespace
}  // namespace selscan::cuda
