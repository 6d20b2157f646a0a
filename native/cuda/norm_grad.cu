// RMS and layer normalisation, backward. See lib/ops/norm.ts for the equations, cuda/norm.cuh for how a row lies in a block.
//
// A block has 8 to 64 neighbouring rows, the next of which is loaded while one is summed; the weight is read once. dweight and dbias
// add up in registers over the rows of a block, then over blocks, in f64. Of a centred row the mean is given in one f32; what it
// lacks, c, comes with the sums that are needed anyway: Σ g·x̂ = rstd·(Σ g·d − c·Σ g), d = x − mean.
// Bound by memory: with a residual 14 bytes an element, where dy is bf16 and x f32. Not measured on a GPU yet.
#include "cuda/norm.cuh"
#include "cuda/partials.cuh"

namespace selscan::cuda {
namespace {

using namespace norm;

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
  const float *weight, *mean, *rstd;  // weight null: ones; mean: of centred rows alone
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
    loadGain<N>(norm.weight, e, gain);
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
    loadGain<N>(norm.weight, e, gain);
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
    if (elementAt<N>(i) < dim) loadGain<N>(norm.weight, elementAt<N>(i), gain[i]);

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

KERNEL(rmsNormGrad, cuda, "dy? dsum? x weight? rstd -> dx dweight dbias", .run = launchNormGrad<false>,
       .limit = ops::rmsNormGradLimit, .workspaceBytes = partialBytes)
KERNEL(layerNormGrad, cuda, "dy? dsum? x weight mean rstd -> dx dweight dbias", .run = launchNormGrad<true>,
       .limit = ops::layerNormGradLimit, .workspaceBytes = partialBytes)

}  // namespace
}  // namespace selscan::cuda
