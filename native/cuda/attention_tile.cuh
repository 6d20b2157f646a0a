// Precision bf16: tiles of queries, keys and values in shared memory, and the fragments that tensor cores read from them.
//
// A tile has lines of Width elements: a head each, filled up with zeros. Banks: ldmatrix reads one chunk of 16 bytes of 8 lines.
// Chunk c of line l is kept at c XOR (l mod 8) or, of 4 chunks, at c XOR (l / 2 mod 4): 8 lines then fill the 128 bytes of all
// banks once.
#pragma once
#include <cstring>

#include "cuda/attention.cuh"

namespace selscan::cuda::attention {

// Blocks of a multiprocessor for __launch_bounds__: as many as its shared memory holds, each with 1 KB of the system's; at most
// `most`, which registers allow without spills. A bound that asked for more would take registers away for nothing.
constexpr int blocksHeld(int most, size_t sharedBytes) {
  size_t shared = 228 * 1024;  // sm_90 and sm_100
#ifdef __CUDA_ARCH__
  if (__CUDA_ARCH__ == 800 || __CUDA_ARCH__ == 870) shared = 164 * 1024;
  if (__CUDA_ARCH__ == 860 || __CUDA_ARCH__ == 890 || __CUDA_ARCH__ >= 1200) shared = 100 * 1024;
#endif
  const auto held = static_cast<int>(shared / (sharedBytes + 1024));
  return held < 1 ? 1 : held < most ? held : most;
}

template <int Width>
struct HalfTile {
  static constexpr int Chunks = Width / 8, Ways = Chunks < 8 ? Chunks : 8;
  static_assert(Chunks == 4 || Chunks % 8 == 0);

  // Where chunk `chunk` + `more` is kept, in elements; `chunk` is even and known to the compiler, `more` is 0 or 1. Chunks then
  // differ by an XOR and an offset that it knows, and need Ways / 2 addresses: one for each would not fit the registers.
  static __device__ __forceinline__ int at(int line, int chunk, int more) {
    const int first = line * Chunks + (more ^ (Chunks == 4 ? line / 2 % 4 : line % 8));
    return (first ^ chunk % Ways) * 8 + chunk / Ways * Ways * 8;
  }
  static __device__ __forceinline__ int at(int line, int chunk) { return at(line, chunk / Ways * Ways, 0) ^ chunk % Ways * 8; }
  // A: 16 lines from `line`, 16 columns from `column`.
  static __device__ __forceinline__ void loadA(uint32_t (&a)[4], const bf16* tile, int line, int column) {
    const int lane = laneIndex();
    loadMatrix4(a, tile + at(line + lane % 16, column / 8, lane / 16));
  }
  // B of a product over columns: 16 lines from `line` are its columns; k are 16 columns from `column`.
  static __device__ __forceinline__ void loadB(uint32_t (&b)[2][2], const bf16* tile, int line, int column) {
    const int lane = laneIndex();
    uint32_t both[4];
    loadMatrix4(both, tile + at(line + lane % 8 + lane / 16 * 8, column / 8, lane / 8 % 2));
    b[0][0] = both[0], b[0][1] = both[1], b[1][0] = both[2], b[1][1] = both[3];
  }
  // B of a product over lines: k are 16 lines from `line`; 16 columns from `column`.
  static __device__ __forceinline__ void loadAcross(uint32_t (&b)[2][2], const bf16* tile, int line, int column) {
    const int lane = laneIndex();
    uint32_t both[4];
    loadMatrix4Transposed(both, tile + at(line + lane % 16, column / 8, lane / 16));
    b[0][0] = both[0], b[0][1] = both[1], b[1][0] = both[2], b[1][1] = both[3];
  }
};

// Begins to copy Lines lines of `columns` elements; where(line) says where one begins, null: zeros. `vectors`: lines begin on 16
// bytes and are whole chunks. `any`: an address that may be named. It is there after waitCopies and a barrier.
template <int Width, int Lines, int Threads, class Where>
__device__ __forceinline__ void stageHalves(bf16* tile, int columns, bool vectors, const void* any, const Where& where) {
  using Tile = HalfTile<Width>;
  constexpr int Passes = Lines * Tile::Chunks / Threads;
  static_assert(Lines * Tile::Chunks % Threads == 0);
  [[maybe_unused]] constexpr int AtOnce = Width == 256 ? 1 : 4;
#pragma unroll AtOnce
  for (int pass = 0; pass < Passes; pass++) {
    const int i = pass * Threads + static_cast<int>(threadIdx.x), line = i / Tile::Chunks, chunk = i % Tile::Chunks;
    const bf16* from = where(line);
    bf16* to = tile + Tile::at(line, chunk);
    if (vectors) {
      const bool valid = from != nullptr && chunk * 8 < columns;
      copyAsync16(to, valid ? from + chunk * 8 : any, valid);
    } else {
#pragma unroll
      for (int k = 0; k < 8; k++) to[k] = from != nullptr && chunk * 8 + k < columns ? from[chunk * 8 + k] : fromFloat<bf16>(0.0f);
    }
  }
}

// Keys or values of a tile.
template <int Width, int Lines, int Threads>
__device__ __forceinline__ void stageKeyLines(bf16* tile, const Geometry& g, const KeyLines& lines, const bf16* plane, const bf16* ring,
                                              bool vectors) {
  stageHalves<Width, Lines, Threads>(tile, g.headDim, vectors, plane, [&](int line) -> const bf16* {
    if (line < lines.seen.first || line >= lines.seen.end) return nullptr;
    return line < lines.split ? ring + lines.ring + int64_t{line} * g.headDim : plane + lines.own + line * lines.stride;
  });
}
// Packed rows of a matrix with the heads of q.
template <int Width, int Lines, int Threads>
__device__ __forceinline__ void stageQueryLines(bf16* tile, const Geometry& g, const Sequence& sequence, int kvHead, Range packed,
                                                const bf16* plane, int64_t stride, bool vectors) {
  stageHalves<Width, Lines, Threads>(tile, g.headDim, vectors, plane, [&](int line) -> const bf16* {
    const int i = packed.first + line, row = i / g.group;
    if (i >= packed.end) return nullptr;
    return plane + (sequence.begin + row) * stride + int64_t{kvHead * g.group + i - row * g.group} * g.headDim;
  });
}

// sums = the products of 16 lines of `a` from `line` with N·8 lines of `b`, over all columns in rising steps of 16.
template <int Width, int N>
__device__ __forceinline__ void multiplyLines(float (&sums)[N][4], const bf16* a, int line, const bf16* b) {
#pragma unroll
  for (int n = 0; n < N; n++)
#pragma unroll
    for (int e = 0; e < 4; e++) sums[n][e] = 0.0f;
#pragma unroll
  for (int column = 0; column < Width; column += 16) {
    uint32_t left[4];
    HalfTile<Width>::loadA(left, a, line, column);
#pragma unroll
    for (int n = 0; n < N; n += 2) {
      uint32_t right[2][2];
      HalfTile<Width>::loadB(right, b, n * 8, column);
      multiplyAccumulate(sums[n], left, right[0]);
      multiplyAccumulate(sums[n + 1], left, right[1]);
    }
  }
}

__device__ __forceinline__ uint32_t pairOf(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  uint32_t bits;
  memcpy(&bits, &pair, sizeof(bits));
  return bits;
}
// sums += w·b: w is 16 × (N·8) as a product leaves it in registers, rounded to bf16; of b N·8 lines and M·8 columns from `column`.
// Two neighbouring fragments of an accumulator hold what the A fragment of these 16 k wants.
template <int Width, int N, int M>
__device__ __forceinline__ void multiplyAcross(float (&sums)[M][4], const float (&w)[N][4], const bf16* b, int column) {
#pragma unroll
  for (int k = 0; k < N; k += 2) {
    const uint32_t left[4] = {pairOf(w[k][0], w[k][1]), pairOf(w[k][2], w[k][3]), pairOf(w[k + 1][0], w[k + 1][1]),
                              pairOf(w[k + 1][2], w[k + 1][3])};
#pragma unroll
    for (int m = 0; m < M; m += 2) {
      uint32_t right[2][2];
      HalfTile<Width>::loadAcross(right, b, k * 8, column + m * 8);
      multiplyAccumulate(sums[m], left, right[0]);
      multiplyAccumulate(sums[m + 1], left, right[1]);
    }
  }
}

// Calls drop(n, e) for every element of an accumulator's N fragments whose column its row's range leaves out; the rows are
// lane / 4 and 8 below it.
template <int N, class Drop>
__device__ __forceinline__ void dropUnseen(const Range (&seen)[2], const Drop& drop) {
#pragma unroll
  for (int h = 0; h < 2; h++) {
    if (seen[h].first <= 0 && seen[h].end >= N * 8) continue;
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
      for (int e = 0; e < 2; e++) {
        const int column = n * 8 + laneIndex() % 4 * 2 + e;
        if (column < seen[h].first || column >= seen[h].end) drop(n, 2 * h + e);
      }
  }
}

}  // namespace selscan::cuda::attention
