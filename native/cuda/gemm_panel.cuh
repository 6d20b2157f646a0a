// One operand's part of a product in shared memory: Size rows of A, or columns of B, by Depth of k, in each plane.
//
// An operand lies along k (x and W of a forward product: an element's neighbour is the next k) or across it (W in dy·W, both in
// dyᵀ·x: its neighbour is the next row of A or column of B). The panel keeps the order of memory in lines of 16-byte chunks, and
// ldmatrix, transposed for operands across k, makes the fragments.
//
// Banks: ldmatrix reads one chunk of 8 lines, which are 16·Chunks bytes apart. So chunk c of line l is kept at c XOR (l mod 8) or,
// of fewer than 8 chunks, at c XOR (l / (8 / Chunks) mod Chunks): 8 lines then fill the 128 bytes of all banks once.
#pragma once
#include "cuda/planes.cuh"

namespace selscan::cuda {

template <bool Across, int Size, int Depth, int PlaneCount, int Threads>
class Panel {
  static constexpr int Chunks = (Across ? Size : Depth) / 8;  // in a line
  static constexpr int Lines = Across ? Depth : Size;
  static constexpr int LinesAtOnce = Threads / Chunks, Passes = Lines / LinesAtOnce;
  static_assert(Threads % Chunks == 0 && Lines % LinesAtOnce == 0 && LinesAtOnce % 8 == 0,
                "every thread keeps its chunk and its swizzle");

 public:
  static constexpr int PlaneElements = Size * Depth, Elements = PlaneCount * PlaneElements;

  // The operand has `size` rows (columns of B); the panel begins at `first`, and at k = 0.
  __device__ __forceinline__ Panel(const Planes& planes, int64_t first, int64_t size)
      : chunk_(static_cast<int>(threadIdx.x) % Chunks),
        line_(static_cast<int>(threadIdx.x) / Chunks),
        planeStride_(planes.planeStride),
        passStride_(LinesAtOnce * planes.stride) {
    from_ = planes.data + (Across ? line_ * planes.stride + first + chunk_ * 8 : (first + line_) * planes.stride + chunk_ * 8);
    slot_ = at(line_, chunk_);
    inside_ = 0;
#pragma unroll
    for (int pass = 0; pass < Passes; pass++)
      inside_ |= unsigned{Across ? first + chunk_ * 8 < size : first + line_ + pass * LinesAtOnce < size} << pass;
  }

  // Begins to copy the next Depth of k, of which `left` are there; the rest is zeros, as is what is outside the operand.
  __device__ __forceinline__ void copy(bf16* to, int left) {
#pragma unroll
    for (int plane = 0; plane < PlaneCount; plane++)
#pragma unroll
      for (int pass = 0; pass < Passes; pass++) {
        const bool there = (inside_ >> pass & 1) && (Across ? line_ + pass * LinesAtOnce : chunk_ * 8) < left;
        copyAsync16(to + plane * PlaneElements + slot_ + pass * LinesAtOnce * Chunks * 8,
                    from_ + plane * planeStride_ + pass * passStride_, there);
      }
    from_ += Across ? Lines / LinesAtOnce * passStride_ : Depth;
  }

  // A's fragment: 16 rows from `first`, 16 k from `k`.
  static __device__ __forceinline__ void loadA(uint32_t (&fragment)[4], const bf16* plane, int first, int k) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    if constexpr (Across) loadMatrix4Transposed(fragment, plane + at(k + lane % 8 + lane / 16 * 8, first / 8 + lane / 8 % 2));
    else loadMatrix4(fragment, plane + at(first + lane % 16, k / 8 + lane / 16));
  }
  // B's fragments: 16 k from `k`, 8 columns from `first` and, for two, the 8 after them.
  static __device__ __forceinline__ void loadB(uint32_t (&fragments)[1][2], const bf16* plane, int first, int k) {
    const int lane = static_cast<int>(threadIdx.x) % 16;
    if constexpr (Across) loadMatrix2Transposed(fragments[0], plane + at(k + lane, first / 8));
    else loadMatrix2(fragments[0], plane + at(first + lane % 8, k / 8 + lane / 8));
  }
  template <int Count>
  static __device__ __forceinline__ void loadB(uint32_t (&fragments)[Count][2], const bf16* plane, int first, int k) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
    for (int pair = 0; pair < Count / 2; pair++) {
      uint32_t both[4];
      const int column = first + pair * 16;
      if constexpr (Across) loadMatrix4Transposed(both, plane + at(k + lane % 16, column / 8 + lane / 16));
      else loadMatrix4(both, plane + at(column + lane % 8 + lane / 16 * 8, k / 8 + lane / 8 % 2));
      fragments[2 * pair][0] = both[0], fragments[2 * pair][1] = both[1];
      fragments[2 * pair + 1][0] = both[2], fragments[2 * pair + 1][1] = both[3];
    }
  }

 private:
  // Where a chunk is kept, in elements.
  static __device__ __forceinline__ int at(int line, int chunk) {
    constexpr int LinesInBanks = Chunks < 8 ? 8 / Chunks : 1, Ways = Chunks < 8 ? Chunks : 8;
    return (line * Chunks + (chunk ^ line / LinesInBanks % Ways)) * 8;
  }

  int chunk_, line_, slot_;
  unsigned inside_;  // a bit for each pass
  const bf16* from_;
  int64_t planeStride_, passStride_;  // the latter over LinesAtOnce lines
};

}  // namespace selscan::cuda
