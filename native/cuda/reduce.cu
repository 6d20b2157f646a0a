// Sums over elements and over rows, and the broadcast that is their gradient. See lib/ops/reduce.ts.
//
// sum: a block of threads for 4096 elements, each thread's 16 in f64, a tree over the block; one more block adds the blocks'
// sums in rising order. sumRows: a block for 64 rows of 32 vectors of columns, a warp for every eighth row, the warps' sums in
// rising order; the same kernel then adds the lines of partial sums. How work is cut depends on the shape alone. Products of
// two f32 are exact in f64.
// Bound by memory: 2 or 4 bytes an element, and for sumRows 16 bytes more for each column and 64 rows. Not measured on a GPU
// yet; on GPUs whose f64 units are few (1 for 64 of f32) the additions would bound it instead.
#include "core/dims.h"
#include "cuda/block.cuh"
#include "cuda/elementwise.cuh"

namespace selscan::cuda {
namespace {

constexpr int Threads = 256, Warps = Threads / 32;
constexpr int64_t Block = 4096, RowBlock = 64;

template <bool Squares>
__device__ __forceinline__ double term(float x) {
  const double wide = x;
  return Squares ? wide * wide : wide;
}

// partial[block] = Σ of its elements; into y where there is one block alone.
// registers: 32
template <class T, bool Squares>
__global__ __launch_bounds__(Threads) void sumElements(const T* x, int64_t count, double* partial, float* y) {
  constexpr int N = 16 / sizeof(T), Rounds = Block / (Threads * N);
  SHARED(double, scratch);
  const int64_t begin = int64_t{blockIdx.x} * Block;
  double sum = 0;
  if (begin + Block <= count) {
    float values[Rounds][N];
#pragma unroll
    for (int round = 0; round < Rounds; round++) loadVec<N>(x + begin + (round * Threads + threadIdx.x) * N, values[round]);
#pragma unroll
    for (int round = 0; round < Rounds; round++)
#pragma unroll
      for (int i = 0; i < N; i++) sum += term<Squares>(values[round][i]);
  } else {
    for (int64_t i = begin + threadIdx.x; i < count; i += Threads) sum += term<Squares>(toFloat(x[i]));
  }
  sum = overBlock(Sum{}, sum, 0.0, scratch);
  if (threadIdx.x != 0) return;
  if (gridDim.x == 1) *y = static_cast<float>(sum);
  else partial[blockIdx.x] = sum;
}

// registers: 32
__global__ __launch_bounds__(Threads) void sumPartials(const double* partial, int64_t count, float* y) {
  SHARED(double, scratch);
  double sum = 0;
#pragma unroll 4
  for (int64_t i = threadIdx.x; i < count; i += Threads) sum += partial[i];
  sum = overBlock(Sum{}, sum, 0.0, scratch);
  if (threadIdx.x == 0) *y = static_cast<float>(sum);
}

template <bool Squares>
void total(const Call& call) {
  const auto [x] = call.in<1>();
  const auto [y] = call.out<1>();
  if (!y) return;
  CudaDevice& device = deviceOf(call);
  const size_t scratch = WarpMax * sizeof(double);
  const int64_t blocks = ceilDiv(x.elements(), Block);
  double* partial = reinterpret_cast<double*>(call.workspace);
  withType(x.dtype, [&, x = x, y = y]<class T>() {
    const Grid grid{static_cast<unsigned>(blocks), Threads, scratch};
    launch(device, grid, sumElements<T, Squares>, dataOf<T>(x), x.elements(), partial, y.f32());
  });
  if (blocks != 1) launch(device, {1u, Threads, scratch}, sumPartials, partial, blocks, y.f32());
}

template <int N, class T>
__device__ __forceinline__ void loadDoubles(const T* from, double (&to)[N]) {
  const Vec<T, N> v = *reinterpret_cast<const Vec<T, N>*>(from);
#pragma unroll
  for (int i = 0; i < N; i++) {
    if constexpr (sizeof(T) == sizeof(double)) to[i] = v.at[i];
    else to[i] = toFloat(v.at[i]);
  }
}

// y[block, column] = Σ x[row, column] over the rows of the block; a warp has 32·N columns. N > 1 where N divides dim.
// registers: 48
template <class From, class To, int N>
__global__ __launch_bounds__(Threads) void sumColumns(const From* x, int64_t rows, int64_t dim, int64_t rowsPerBlock,
                                                      int64_t columnBlocks, To* y) {
  constexpr int Columns = 32 * N;
  SHARED(double, sums);  // (N, Threads)
  const int64_t block = blockIdx.x / columnBlocks, left = blockIdx.x % columnBlocks * Columns;
  const int64_t column = left + laneIndex() * N, end = min(rows, (block + 1) * rowsPerBlock);
  double sum[N] = {};
  if (column < dim) {
#pragma unroll 4
    for (int64_t row = block * rowsPerBlock + warpIndex(); row < end; row += Warps) {
      double values[N];
      loadDoubles<N>(x + row * dim + column, values);
#pragma unroll
      for (int i = 0; i < N; i++) sum[i] += values[i];
    }
  }
#pragma unroll
  for (int i = 0; i < N; i++) sums[i * Threads + threadIdx.x] = sum[i];
  __syncthreads();
  const int own = static_cast<int>(threadIdx.x);
  if (own >= Columns || left + own >= dim) return;
  double all = 0;
#pragma unroll
  for (int warp = 0; warp < Warps; warp++) all += sums[own % N * Threads + warp * 32 + own / N];
  y[block * dim + left + own] = static_cast<To>(all);
}

template <class From, class To, int N>
void launchColumns(CudaDevice& device, const From* x, int64_t rows, int64_t dim, int64_t rowsPerBlock, To* y) {
  const int64_t columnBlocks = ceilDiv(dim, 32 * N);
  const Grid grid{static_cast<unsigned>(ceilDiv(rows, rowsPerBlock) * columnBlocks), Threads, N * Threads * sizeof(double)};
  launch(device, grid, sumColumns<From, To, N>, x, rows, dim, rowsPerBlock, columnBlocks, y);
}

void sumRows(const Call& call) {
  const auto [x] = call.in<1>();
  const auto [y] = call.out<1>();
  if (!y) return;
  CudaDevice& device = deviceOf(call);
  const int64_t rows = x[0], dim = x[1], rowBlocks = ceilDiv(rows, RowBlock);
  double* partial = reinterpret_cast<double*>(call.workspace);
  withType(x.dtype, [&, x = x]<class T>() {
    constexpr int N = 16 / sizeof(T);
    const T* from = dataOf<T>(x);
    if (dim % N == 0) launchColumns<T, double, N>(device, from, rows, dim, RowBlock, partial);
    else launchColumns<T, double, 1>(device, from, rows, dim, RowBlock, partial);
  });
  launchColumns<double, float, 1>(device, partial, rowBlocks, dim, rowBlocks, y.f32());
}

struct Everywhere {
  const float* value;
  __device__ float operator()() const { return __ldg(value); }
};
void broadcast(const Call& call) {
  const auto [y] = call.out<1>();
  if (y) launchElements(deviceOf(call), y.elements(), Everywhere{call.inputs[0].f32()}, y.f32());
}

std::string sumLimit(const Call& call) { return dimsMismatch(call, {"activation ..."}, {""}); }
size_t elementBlocks(const Call& call) { return static_cast<size_t>(ceilDiv(call.inputs[0].elements(), Block)) * sizeof(double); }
size_t rowBlocks(const Call& call) {
  const auto [x] = call.in<1>();
  return static_cast<size_t>(ceilDiv(x[0], RowBlock) * x[1]) * sizeof(double);
}

KERNEL(sum, cuda, "x -> y", .run = total<false>, .limit = sumLimit, .workspaceBytes = elementBlocks)
KERNEL(sumSquares, cuda, "x -> y", .run = total<true>, .limit = sumLimit, .workspaceBytes = elementBlocks)
KERNEL(sumRows, cuda, "x -> y", .run = sumRows,
       .limit = [](const Call& call) { return dimsMismatch(call, {"activation rows dim"}, {"dim"}); },
       .workspaceBytes = rowBlocks)
KERNEL(broadcast, cuda, "x -> y; rows", .run = broadcast,
       .limit = [](const Call& call) { return dimsMismatch(call, {""}, {"rows"}, "rows"); })
KERNEL(broadcastLike, cuda, "x like -> y", .run = broadcast,
       .limit = [](const Call& call) { return dimsMismatch(call, {"", "float ..."}, {"..."}); })

}  // namespace
}  // namespace selscan::cuda
