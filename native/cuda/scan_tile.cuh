// What the forward and the backward selective scan share on CUDA: a tile of rows staged in shared memory, and sums over states.
//
// A channel belongs to S neighbouring lanes of a warp; lane j holds the N states j·N … j·N + N − 1 in registers. The padded state
// P = S·N depends on `state` alone: 16, 32 or 64.
//
// Sums over states are one binary tree for every S: neighbouring states first, within the lane, then lanes 1, 2, 4 … apart. No
// product is fused into a sum. A sum's bits therefore do not depend on S, and a launch may choose S freely.
#pragma once
#include "cuda/math.cuh"
#include "cuda/segments.cuh"
#include "ops/selective_scan.h"

namespace selscan::cuda {

// As ops::savedChunk, which is the host's.
__device__ __forceinline__ int64_t savedChunk(int begin, int64_t s) { return begin / ops::ScanChunk + s; }

// p[0] = the sum of all p, neighbours first.
template <int N>
__device__ __forceinline__ float sumNeighbours(float (&p)[N]) {
  if constexpr (N == 1) {
    return p[0];
  } else {
    float half[N / 2];
#pragma unroll
    for (int i = 0; i < N / 2; i++) half[i] = __fadd_rn(p[2 * i], p[2 * i + 1]);
    return sumNeighbours(half);
  }
}

// The sum of `value` over groups of S lanes, in all of them.
template <int S>
__device__ __forceinline__ float sumLanes(float value) {
#pragma unroll
  for (int apart = 1; apart < S; apart *= 2) value = __fadd_rn(value, __shfl_xor_sync(~0u, value, apart));
  return value;
}

// Sums over groups of S lanes of term(0) … term(S − 1), all at once: lane j gets what sumLanes<S>(term(j)) is, bit for bit, with
// S − 1 shuffles instead of S·log2 S. Of two halves that differ in one bit of the index, a lane keeps the half that has its own
// bit of j and sends the other to the lane as far away, which sends back its part of the kept one. Depth first, so that log2 S
// sums wait at a time, and not S. Terms are asked for in rising order.
template <int S, int Count = S, class Term>
__device__ __forceinline__ float sumTransposed(int j, const Term& term, int first = 0) {
  if constexpr (Count == 1) {
    return term(first);
  } else {
    constexpr int Apart = Count / 2;
    const float low = sumTransposed<S, Apart>(j, term, first), high = sumTransposed<S, Apart>(j, term, first + Apart);
    const bool upper = j & Apart;
    return __fadd_rn(upper ? high : low, __shfl_xor_sync(~0u, upper ? low : high, Apart));
  }
}

// Whether rows of that many columns, and parts of them that begin at multiples of 16 bytes, can be moved in vectors of 16 bytes.
template <class T>
inline bool inVectors(int64_t columns) {
  return columns % static_cast<int64_t>(16 / sizeof(T)) == 0;
}

// Starts to copy `rows` rows of `columns` ≤ Width elements, `stride` apart, to shared memory [row][Width]; further columns become
// zero. All Threads of the block take part. It is there after waitCopies and a barrier.
template <int Threads, int Width, class T>
__device__ __forceinline__ void stageRows(T* to, const T* from, int64_t stride, int rows, int columns, bool vectors) {
  constexpr int V = 16 / sizeof(T), PerRow = Width / V;
  static_assert(Width % V == 0);
  const int first = static_cast<int>(threadIdx.x);
  if (vectors) {
#pragma unroll 1
    for (int i = first; i < rows * PerRow; i += Threads) {
      const int row = i / PerRow, column = i % PerRow * V;
      const bool valid = column < columns;
      copyAsync16(to + row * Width + column, from + row * stride + (valid ? column : 0), valid);
    }
  } else {
#pragma unroll 1
    for (int i = first; i < rows * Width; i += Threads) {
      const int row = i / Width, column = i % Width;
      const bool valid = column < columns;
      const T* element = from + row * stride + (valid ? column : 0);
      if constexpr (sizeof(T) == 4) copyAsync4(to + i, element, valid);
      else to[i] = valid ? *element : fromFloat<T>(0.0f);
    }
  }
}

// Writes `rows` rows of `columns` elements from shared memory [row][Width].
template <int Threads, int Width, class T>
__device__ __forceinline__ void storeRows(T* to, const T* from, int64_t stride, int rows, int columns, bool vectors) {
  constexpr int V = 16 / sizeof(T), PerRow = Width / V;
  const int first = static_cast<int>(threadIdx.x);
  if (vectors) {
#pragma unroll 1
    for (int i = first; i < rows * PerRow; i += Threads) {
      const int row = i / PerRow, column = i % PerRow * V;
      const auto& piece = *reinterpret_cast<const Vec<T, V>*>(from + row * Width + column);
      if (column < columns) *reinterpret_cast<Vec<T, V>*>(to + row * stride + column) = piece;
    }
  } else {
#pragma unroll 1
    for (int i = first; i < rows * Width; i += Threads)
      if (const int row = i / Width, column = i % Width; column < columns) to[row * stride + column] = from[i];
  }
}

// Zeroes `columns` ≤ Width columns of the rows [begin, end).
template <int Threads, int Width, class T>
__device__ __forceinline__ void zeroRows(T* to, int64_t stride, int64_t begin, int64_t end, int columns, bool vectors) {
  constexpr int V = 16 / sizeof(T);
  const int perRow = vectors ? Width / V : Width, each = vectors ? V : 1;
  const int column = static_cast<int>(threadIdx.x) % perRow * each;
  if (column >= columns) return;
#pragma unroll 1
  for (int64_t row = begin + threadIdx.x / perRow; row < end; row += Threads / perRow) {
    T* at = to + row * stride + column;
    if (vectors) storeGlobal<V>(at, {});
    else *at = fromFloat<T>(0.0f);
  }
}

// B and C of a row as f32 in shared memory, in the order in which lanes read them: 2·N numbers for each of S lanes, in pieces
// of 16 bytes (of 8 for N = 1), piece q of all lanes side by side so that a warp reads without conflicts. N = 1: B C; N = 2:
// B B C C; from N = 4 on the pieces of B, then those of C.
template <int S, int N>
struct LaneBands {
  static_assert(N == 1 || N == 2 || N % 4 == 0);
  static constexpr int State = S * N;

  // Four states from n on, n a multiple of 4.
  static __device__ __forceinline__ void write(float* row, int n, const float (&B)[4], const float (&C)[4]) {
    if constexpr (N == 1) {
      storeVec<4>(row + 2 * n, {B[0], C[0], B[1], C[1]});
      storeVec<4>(row + 2 * n + 4, {B[2], C[2], B[3], C[3]});
    } else if constexpr (N == 2) {
      storeVec<4>(row + 2 * n, {B[0], B[1], C[0], C[1]});
      storeVec<4>(row + 2 * n + 4, {B[2], B[3], C[2], C[3]});
    } else {
      const int j = n / N, q = n % N / 4;
      storeVec<4>(row + (q * S + j) * 4, B);
      storeVec<4>(row + ((N / 4 + q) * S + j) * 4, C);
    }
  }

  static __device__ __forceinline__ void read(const float* row, int j, float (&B)[N], float (&C)[N]) {
    if constexpr (N <= 2) {
      float both[2 * N];
      loadVec<2 * N>(row + 2 * N * j, both);
#pragma unroll
      for (int i = 0; i < N; i++) B[i] = both[i], C[i] = both[N + i];
    } else {
#pragma unroll
      for (int q = 0; q < N / 4; q++) {
        float b[4], c[4];
        loadVec<4>(row + (q * S + j) * 4, b);
        loadVec<4>(row + ((N / 4 + q) * S + j) * 4, c);
#pragma unroll
        for (int i = 0; i < 4; i++) B[4 * q + i] = b[i], C[4 * q + i] = c[i];
      }
    }
  }

  // Rows of B and C staged as [row][State], brought into that order by all Threads of the block.
  template <int Threads, class T>
  static __device__ __forceinline__ void arrange(float* to, const T* B, const T* C, int rows) {
    constexpr int Quads = State / 4;
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x); i < rows * Quads; i += Threads) {
      const int row = i / Quads, n = i % Quads * 4;
      float b[4], c[4];
      loadVec<4>(B + row * State + n, b);
      loadVec<4>(C + row * State + n, c);
      write(to + row * 2 * State, n, b, c);
    }
  }
};

// N neighbouring states of a channel, from n on, of [channel][state] at `from`; zero beyond `state`.
template <int N>
__device__ __forceinline__ void loadStates(const float* from, int n, int state, bool vectors, float (&to)[N]) {
  if (vectors) {
    loadVec<N>(from + n, to);
  } else {
#pragma unroll
    for (int i = 0; i < N; i++) to[i] = n + i < state ? from[n + i] : 0.0f;
  }
}
template <int N>
__device__ __forceinline__ void storeStates(float* to, int n, int state, bool vectors, const float (&from)[N]) {
  if (vectors) {
    storeVec<N>(to + n, from);
  } else {
#pragma unroll
    for (int i = 0; i < N; i++)
      if (n + i < state) to[n + i] = from[i];
  }
}

// Δ of a channel from its raw value.
__device__ __forceinline__ float stepSize(float raw, bool positive) { return positive ? softplus(raw) : raw; }

}  // namespace selscan::cuda
