// The product under linear, its gradients and linearCrossEntropy, on tensor cores:
//
//   C[m, n] = Σ_k A(m, k)·B(k, n)      A(m, k) = Σᵢ aᵢ(m, k), B(k, n) = Σⱼ bⱼ(k, n) over one or three planes of bf16
//
// A block computes a tile of C; its warps take mma.m16n8k16 fragments from panels in shared memory, which cp.async fills several
// stages ahead. Every element is summed over k in rising steps of 16 (an even number of them; beyond the last k are zeros), by
// the same instructions in every tile size, so its bits depend on neither the number of rows nor the tile. k is never split.
//
// Three planes (precision f32): of the nine products of planes, the three that are at most 2⁻²⁴ of the largest are left out. A
// step sums the other six, the small ones first, from zero, and adds them to C's sum outside of the tensor core, in f32 that
// rounds: the tensor core would cut off the low bits of a long sum. The error is that of f32 products: at k = 4096 at most
// 0.11 · 2⁻²⁴ of Σ|A·B| on the emulated device (the CPU's f32 path: 0.52); a GPU's own sums within a step are still to be
// measured. An infinite factor gives NaN: what is infinite times a plane that is zero. One plane sums in the tensor core
// throughout.
//
// The epilogue takes whole tiles from shared memory, so that what it reads and writes is coalesced whatever the fragments are.
//
// Floors: 2·m·n·k operations of bf16 for one plane, six times that for three; for 16 rows or fewer the bytes of B.
// Tiles: 128 × 128 × 32 in 8 warps of 64 × 32; 64 × 64 × 32 in 4 warps where that would leave multiprocessors without a block;
// 16 × 16 × 64 in 2 warps for up to 16 rows, where weights only stream by. None of them has been measured on a GPU yet.
#pragma once
#include "cuda/any_float.cuh"
#include "cuda/gemm_panel.cuh"
#include "cuda/math.cuh"

namespace selscan::cuda {

struct Product {
  Planes a, b;
  int64_t m, n, k;
  int planes;  // 1 or 3
};

// A tile of Rows × Columns of C in WarpsDown × WarpsAcross warps; Depth of k in a stage; Blocks fit a multiprocessor.
template <int Rows_, int Columns_, int Depth_, int WarpsDown_, int WarpsAcross_, int PlaneCount_, int Stages_, int Blocks_>
struct Tile {
  static constexpr int Rows = Rows_, Columns = Columns_, Depth = Depth_;
  static constexpr int PlaneCount = PlaneCount_, Stages = Stages_, Blocks = Blocks_;
  static constexpr int WarpsAcross = WarpsAcross_, Threads = WarpsDown_ * WarpsAcross_ * 32;
  static constexpr int WarpRows = Rows / WarpsDown_, WarpColumns = Columns / WarpsAcross_;
  static constexpr int FragmentsDown = WarpRows / 16, FragmentsAcross = WarpColumns / 8;
  static constexpr int StageElements = PlaneCount * (Rows + Columns) * Depth;
  static constexpr int SumStride = Columns + 8;  // of the tile of sums, in floats: fragments are written without bank conflicts
  static constexpr size_t StageBytes = Stages * StageElements * sizeof(bf16), SumBytes = Rows * SumStride * sizeof(float);
  static constexpr size_t SharedBytes = StageBytes > SumBytes ? StageBytes : SumBytes;
  static_assert(Depth % 32 == 0, "every tile size takes the same number of steps: an even one");
};
template <int PlaneCount>
using LargeTile = Tile<128, 128, 32, 2, 4, PlaneCount, PlaneCount == 1 ? 4 : 3, PlaneCount == 1 ? 2 : 1>;
template <int PlaneCount>
using SmallTile = Tile<64, 64, 32, 2, 2, PlaneCount, PlaneCount == 1 ? 4 : 3, 2>;
constexpr int FewRows = 16;
template <int PlaneCount>
using RowTile = Tile<FewRows, 16, 64, 1, 2, PlaneCount, PlaneCount == 1 ? 8 : 4, 4>;

// One step of 16 k of a warp's part of the tile.
template <class T, class PanelA, class PanelB>
__device__ __forceinline__ void multiplyStep(float (&sums)[T::FragmentsDown][T::FragmentsAcross][4], const bf16* a, const bf16* b,
                                             int row, int column, int k) {
  uint32_t right[T::PlaneCount][T::FragmentsAcross][2];
#pragma unroll
  for (int p = 0; p < T::PlaneCount; p++) PanelB::loadB(right[p], b + p * PanelB::PlaneElements, column, k);
#pragma unroll
  for (int i = 0; i < T::FragmentsDown; i++) {
    uint32_t left[T::PlaneCount][4];
#pragma unroll
    for (int p = 0; p < T::PlaneCount; p++) PanelA::loadA(left[p], a + p * PanelA::PlaneElements, row + 16 * i, k);
    if constexpr (T::PlaneCount == 1) {
#pragma unroll
      for (int j = 0; j < T::FragmentsAcross; j++) multiplyAccumulate(sums[i][j], left[0], right[0][j]);
    } else {
      float step[T::FragmentsAcross][4] = {};
#pragma unroll
      for (int pair = 0; pair < 6; pair++) {
        constexpr int A[6] = {0, 2, 1, 0, 1, 0}, B[6] = {2, 0, 1, 1, 0, 0};
#pragma unroll
        for (int j = 0; j < T::FragmentsAcross; j++) multiplyAccumulate(step[j], left[A[pair]], right[B[pair]][j]);
      }
#pragma unroll
      for (int j = 0; j < T::FragmentsAcross; j++)
#pragma unroll
        for (int e = 0; e < 4; e++) sums[i][j][e] += step[j][e];
    }
  }
}

// Tiles go down 8 rows of tiles before they go to the next column: blocks that run together share what they read in L2.
struct TilePlace {
  int64_t row, column;
};
template <class T>
__device__ __forceinline__ TilePlace placeOf(unsigned block, int64_t m, int64_t n) {
  constexpr unsigned Band = 8;
  const auto down = static_cast<unsigned>((m + T::Rows - 1) / T::Rows);
  const auto across = static_cast<unsigned>((n + T::Columns - 1) / T::Columns);
  const unsigned band = block / (Band * across), within = block % (Band * across), high = min(Band, down - band * Band);
  return {int64_t{band * Band + within % high} * T::Rows, int64_t{within / high} * T::Columns};
}

// Gives the tile of sums to the epilogue, N columns at a time.
template <class T, int N, class Epilogue>
__device__ __forceinline__ void finishTile(const float* tile, const Epilogue& epilogue, const TilePlace& place, int64_t m) {
#pragma unroll 1  // what two iterations keep apart would cost the main loop registers
  for (int i = static_cast<int>(threadIdx.x); i < T::Rows * T::Columns / N; i += T::Threads) {
    const int row = i / (T::Columns / N), column = i % (T::Columns / N) * N;
    if (place.row + row >= m || place.column + column >= epilogue.columns) continue;
    float sums[N];
    loadVec<N>(tile + row * T::SumStride + column, sums);
    epilogue.apply(place.row + row, place.column + column, sums);
  }
}

// registers: 240
template <class T, bool AcrossA, bool AcrossB, class Epilogue>
__global__ __launch_bounds__(T::Threads, T::Blocks) void gemm(const Product product, const Epilogue epilogue) {
  using PanelA = Panel<AcrossA, T::Rows, T::Depth, T::PlaneCount, T::Threads>;
  using PanelB = Panel<AcrossB, T::Columns, T::Depth, T::PlaneCount, T::Threads>;
  SHARED(unsigned char, shared);
  auto* const stages = reinterpret_cast<bf16*>(shared);
  const TilePlace place = placeOf<T>(blockIdx.x, product.m, product.n);
  PanelA a(product.a, place.row, product.m);
  PanelB b(product.b, place.column, product.n);
  const auto steps = static_cast<int>((product.k + T::Depth - 1) / T::Depth);
  const auto leftAt = [&](int step) {
    const int64_t left = product.k - int64_t{step} * T::Depth;
    return static_cast<int>(left < T::Depth ? left : T::Depth);
  };
  const auto copy = [&](int step) {
    if (step < steps) {
      bf16* stage = stages + step % T::Stages * T::StageElements;
      a.copy(stage, leftAt(step));
      b.copy(stage + PanelA::Elements, leftAt(step));
    }
    commitCopies();
  };
  for (int step = 0; step < T::Stages - 1; step++) copy(step);

  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int row = warp / T::WarpsAcross * T::WarpRows, column = warp % T::WarpsAcross * T::WarpColumns;
  float sums[T::FragmentsDown][T::FragmentsAcross][4] = {};
  for (int step = 0; step < steps; step++) {
    waitCopies<T::Stages - 2>();
    __syncthreads();  // this stage is there for all, and the one before it is read by none
    copy(step + T::Stages - 1);
    const bf16* stage = stages + step % T::Stages * T::StageElements;
    // Two steps of three planes at once would not fit the registers.
    [[maybe_unused]] constexpr int AtOnce = T::PlaneCount == 1 ? T::Depth / 16 : 1;
#pragma unroll AtOnce
    for (int k = 0; k < T::Depth; k += 16) {
      if (k > 0 && k % 32 == 0 && k >= leftAt(step)) break;
      multiplyStep<T, PanelA, PanelB>(sums, stage, stage + PanelA::Elements, row, column, k);
    }
  }
  __syncthreads();  // no stage is read or on its way any more: the sums take their place

  auto* const tile = reinterpret_cast<float*>(shared);
#pragma unroll
  for (int i = 0; i < T::FragmentsDown; i++)
#pragma unroll
    for (int j = 0; j < T::FragmentsAcross; j++) {
      float* at = tile + (row + 16 * i + lane / 4) * T::SumStride + column + 8 * j + lane % 4 * 2;
      storeVec<2>(at, {sums[i][j][0], sums[i][j][1]});
      storeVec<2>(at + 8 * T::SumStride, {sums[i][j][2], sums[i][j][3]});
    }
  __syncthreads();
  if (epilogue.columns % 4 == 0) finishTile<T, 4>(tile, epilogue, place, product.m);
  else finishTile<T, 1>(tile, epilogue, place, product.m);
}

template <class T, bool AcrossA, bool AcrossB, class Epilogue>
void launchTile(CudaDevice& device, const Product& product, const Epilogue& epilogue) {
  const int64_t blocks = ceilDiv(product.m, T::Rows) * ceilDiv(product.n, T::Columns);
  launch(device, {static_cast<unsigned>(blocks), T::Threads, T::SharedBytes}, gemm<T, AcrossA, AcrossB, Epilogue>, product,
         epilogue);
}
template <int PlaneCount, bool AcrossA, bool AcrossB, class Epilogue>
void launchPlanes(CudaDevice& device, const Product& product, const Epilogue& epilogue) {
  constexpr int64_t Blocks = 96;  // fewer large tiles than this do not fill a GPU of about 108 multiprocessors
  if constexpr (!AcrossA)
    if (product.m <= FewRows) return launchTile<RowTile<PlaneCount>, AcrossA, AcrossB>(device, product, epilogue);
  // Some GPUs (8.6, 8.9, 12.0) have less shared memory than three planes of a large tile take.
  const bool fits = LargeTile<PlaneCount>::SharedBytes <= device.sharedBytesMax();
  const bool large = fits && ceilDiv(product.m, 128) * ceilDiv(product.n, 128) >= Blocks;
  if (large) launchTile<LargeTile<PlaneCount>, AcrossA, AcrossB>(device, product, epilogue);
  else launchTile<SmallTile<PlaneCount>, AcrossA, AcrossB>(device, product, epilogue);
}
// Enqueues the product. An epilogue has `columns` ≥ n, how many columns it wants (sums beyond n are zero), and
// apply(m, n, sums), which is given 4 columns at a time where columns is a multiple of 4, else 1.
template <bool AcrossA, bool AcrossB, class Epilogue>
void launchGemm(CudaDevice& device, const Product& product, const Epilogue& epilogue) {
  if (product.planes == 1) launchPlanes<1, AcrossA, AcrossB>(device, product, epilogue);
  else launchPlanes<3, AcrossA, AcrossB>(device, product, epilogue);
}

// What follows the product in a linear: y = act(C + bias) + residual, pre = C + bias. y may lie where residual does.
struct Finish {
  int64_t columns;
  AnyFloat y = {}, pre = {}, residual = {};
  const float* bias = nullptr;
  ops::Activation activation = ops::Activation::none;

  template <int N>
  __device__ __forceinline__ void apply(int64_t m, int64_t n, float (&values)[N]) const {
    const int64_t at = m * columns + n;
    if (bias) {
      float shift[N];
      loadVec<N>(bias + n, shift);
#pragma unroll
      for (int i = 0; i < N; i++) values[i] += shift[i];
    }
    if (pre) pre.store<N>(at, values);
    if (!y) return;
    if (activation == ops::Activation::silu) {
#pragma unroll
      for (int i = 0; i < N; i++) values[i] = silu(values[i]);
    } else if (activation == ops::Activation::softplus) {
#pragma unroll
      for (int i = 0; i < N; i++) values[i] = softplus(values[i]);
    } else if (activation == ops::Activation::gelu) {
#pragma unroll
      for (int i = 0; i < N; i++) values[i] = gelu(values[i]);
    }
    if (residual) {
      float added[N];
      residual.load<N>(at, added);
#pragma unroll
      for (int i = 0; i < N; i++) values[i] += added[i];
    }
    y.store<N>(at, values);
  }
};

// Where the operands of a product lie: x·Wᵀ, dy·W, dyᵀ·x.
enum class Layout { forward, inputGrad, weightGrad };
// Enqueues the product with our own kernels or, where it was asked for and suits, by cuBLAS.
void multiply(CudaDevice& device, Layout layout, const Product& product, const Finish& finish);

}  // namespace selscan::cuda
