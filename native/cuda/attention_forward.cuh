// Forward attention in precision bf16, on tensor cores: a warp has 16 packed rows, a block 1 or 4 warps that share the tiles of
// keys. The plan is in cuda/attention.cu.
#pragma once
#include "cuda/attention_tile.cuh"

namespace selscan::cuda::attention {

// Shared memory of a block: queries; Stages tiles of keys and of values; and the sums over finished key blocks, which only their
// own thread touches. With one stage, keys arrive while weighted values are added and values while scores are computed; a second
// one is taken where a block stays below 80 KB with it. 4 warps at 256 columns take 160 KB, everything else at most 88.
template <int Width_, int Warps_>
struct ForwardTile {
  static constexpr int Width = Width_, Warps = Warps_, Threads = Warps * 32, Rows = Warps * 16;
  static constexpr int Stages = Width <= 64 || (Width == 128 && Warps == 1) ? 2 : 1;
  static constexpr int QueryElements = Rows * Width, KeyElements = KeyTile * Width;
  static constexpr size_t SharedBytes = (QueryElements + 2 * Stages * KeyElements) * sizeof(bf16) + Rows * Width * sizeof(float);
  static constexpr int Blocks = blocksHeld(Width <= 64 ? 3 : Width == 128 ? 2 : 1, SharedBytes);
};

// What a thread keeps of its two rows, lane / 4 and 8 below it. The four lanes of a row have equal maxima; until close() a
// softmax's sum is of their own columns.
template <int Width>
struct Rows16 {
  Softmax softmax[2];
  float sums[Width / 8][4];

  __device__ __forceinline__ void clear() {
    softmax[0] = softmax[1] = {};
#pragma unroll
    for (int n = 0; n < Width / 8; n++)
#pragma unroll
      for (int e = 0; e < 4; e++) sums[n][e] = 0.0f;
  }
  // Scores become weights 2^(scale·score − greatest); what was summed before shrinks by as much as the greatest grows. Scaling
  // is monotone, so that the greatest scaled score is the scaled greatest one.
  template <int N>
  __device__ __forceinline__ void weigh(float (&scores)[N][4], float scale) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
      float most = Nothing, sum = 0.0f;
#pragma unroll
      for (int n = 0; n < N; n++) most = fmaxf(most, fmaxf(scores[n][2 * h], scores[n][2 * h + 1]));
      most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
      most = fmaxf(most, __shfl_xor_sync(~0u, most, 2));
      const float greatest = fmaxf(softmax[h].greatest, __fmul_rn(most, scale)), offset = offsetOf(greatest);
      const float shrink = exp2Fast(softmax[h].greatest - offset);
#pragma unroll
      for (int n = 0; n < N; n++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
          float& score = scores[n][2 * h + e];
          score = exp2Fast(fmaf(score, scale, -offset));
          sum = __fadd_rn(sum, score);
        }
      softmax[h] = {greatest, fmaf(softmax[h].sum, shrink, sum)};
#pragma unroll
      for (int n = 0; n < Width / 8; n++) sums[n][2 * h] *= shrink, sums[n][2 * h + 1] *= shrink;
    }
  }
  // At the end of a key block.
  __device__ __forceinline__ void close() {
#pragma unroll
    for (int h = 0; h < 2; h++) {
      softmax[h].sum += __shfl_xor_sync(~0u, softmax[h].sum, 1);
      softmax[h].sum += __shfl_xor_sync(~0u, softmax[h].sum, 2);
    }
  }
};

// Sums over earlier key blocks, in shared memory, element by element of a fragment: a warp's lanes side by side.
template <class T>
struct Earlier {
  float* sums;
  Softmax softmax[2];

  __device__ __forceinline__ float& at(int n, int e) const { return sums[(n * 4 + e) * T::Threads + threadIdx.x]; }
  __device__ __forceinline__ void begin(const Rows16<T::Width>& rows) {
    softmax[0] = rows.softmax[0], softmax[1] = rows.softmax[1];
#pragma unroll
    for (int n = 0; n < T::Width / 8; n++)
#pragma unroll
      for (int e = 0; e < 4; e++) at(n, e) = rows.sums[n][e];
  }
  // Adds `rows`; `put` is given what all are now.
  template <class Put>
  __device__ __forceinline__ void add(const Rows16<T::Width>& rows, const Put& put) {
    const Weights weights[2] = {merge(softmax[0], rows.softmax[0]), merge(softmax[1], rows.softmax[1])};
#pragma unroll
    for (int n = 0; n < T::Width / 8; n++)
#pragma unroll
      for (int e = 0; e < 4; e++) put(n, e, weights[e / 2](at(n, e), rows.sums[n][e]));
  }
};

// Writes a warp's rows: y and lse, or the partial softmax and sums of one key block.
template <int Width>
__device__ __forceinline__ void storeRows16(const Forward& forward, const Work& work, int line, const Rows16<Width>& rows) {
  const Geometry& g = forward.g;
#pragma unroll
  for (int h = 0; h < 2; h++) {
    const int i = line + laneIndex() / 4 + 8 * h;
    if (i >= work.place.count) continue;
    const int64_t row = work.row(g, i);
    const int head = work.head(g, i);
    const bool partial = forward.partial.softmax, first = laneIndex() % 4 == 0;
    const int64_t part = partial ? forward.partial.at(g, row, head, work.part) : 0;
    if (partial && first) forward.partial.softmax[part] = rows.softmax[h];
    if (!partial && first && forward.lse) forward.lse[row * g.heads + head] = logOf(rows.softmax[h]);
    const AnyFloat to = partial ? forward.partial.sums : forward.y;
    const int64_t at = partial ? part * g.headDim : row * g.width() + int64_t{head} * g.headDim;
    const float inverse = 1.0f / rows.softmax[h].sum;
    if (!to) continue;
#pragma unroll
    for (int n = 0; n < Width / 8; n++) {
      const int column = n * 8 + laneIndex() % 4 * 2;
      const float low = rows.sums[n][2 * h], high = rows.sums[n][2 * h + 1];
      storePair(to, at + column, column, g.headDim, partial ? low : finished(low, inverse), partial ? high : finished(high, inverse));
    }
  }
}

// registers: 120 of <32, 1>, 152 of <32, 4>, 152 of <64, 1>, 200 of <64, 4>, 200 of <128, 1>, 200 of <128, 4>,
// 255 of <256, 1>, 255 of <256, 4>
template <class T>
__global__ __launch_bounds__(T::Threads, T::Blocks) void attendHalves(const __grid_constant__ Forward forward) {
  constexpr int Width = T::Width;
  SHARED(bf16, shared);
  bf16 *const queries = shared, *const keys = queries + T::QueryElements, *const values = keys + T::Stages * T::KeyElements;
  const Geometry& g = forward.g;
  const Work work = workOf<T::Rows>(g, blockIdx.x, forward.partial.parts);
  if (work.tiles == 0) return;
  const auto stage = [&](bf16* to, const std::byte* ring, int64_t column, int tile) {
    if (tile < work.tiles)
      stageKeyLines<Width, KeyTile, T::Threads>(to + tile % T::Stages * T::KeyElements, g,
                                                keyLines(g, work, tile * KeyTile, forward.stride, column), forward.plane,
                                                reinterpret_cast<const bf16*>(ring), forward.vectors);
    commitCopies();
  };
  const auto stageKeys = [&](int tile) { stage(keys, forward.keys, g.keyColumn(work.kvHead), tile); };
  const auto stageValues = [&](int tile) { stage(values, forward.values, g.valueColumn(work.kvHead), tile); };
  const Range packed{work.place.first, work.place.first + work.place.count};
  stageQueryLines<Width, T::Rows, T::Threads>(queries, g, work.place.sequence, work.kvHead, packed, forward.plane, forward.stride,
                                              forward.vectors);
  for (int tile = 0; tile < T::Stages; tile++) stageKeys(tile), stageValues(tile);

  const int line = warpIndex() * 16;
  const Range seen[2] = {work.keysOf(g, line + laneIndex() / 4), work.keysOf(g, line + laneIndex() / 4 + 8)};
  const auto block = static_cast<int>(work.start / KeyTile % BlockTiles);
  Rows16<Width> rows;
  Earlier<T> earlier{reinterpret_cast<float*>(values + T::Stages * T::KeyElements), {}};
  bool more = false;  // earlier key blocks
  rows.clear();
  waitCopies<2 * T::Stages - 1>();
  __syncthreads();
#pragma unroll 1
  for (int tile = 0; tile < work.tiles; tile++) {
    const int at = tile * KeyTile, slot = tile % T::Stages * T::KeyElements;
    float scores[KeyTile / 8][4];
    multiplyLines<Width>(scores, queries, line, keys + slot);
    waitCopies<2 * T::Stages - 2>();
    __syncthreads();  // the values are there, and the keys are read by none any more
    stageKeys(tile + T::Stages);
    dropUnseen<KeyTile / 8>({seen[0].from(at), seen[1].from(at)}, [&](int n, int e) { scores[n][e] = Nothing; });
    rows.weigh(scores, g.scale * Log2e);
    multiplyAcross<Width>(rows.sums, scores, values + slot, 0);
    waitCopies<2 * T::Stages - 2>();
    __syncthreads();  // the next keys are there, and these values are read by none
    stageValues(tile + T::Stages);
    if (tile + 1 == work.tiles || (block + tile) % BlockTiles < BlockTiles - 1) continue;
    rows.close();
    if (more) earlier.add(rows, [&](int n, int e, float sum) { earlier.at(n, e) = sum; });
    else earlier.begin(rows);
    more = true;
    rows.clear();
  }
  rows.close();
  if (more) {
    earlier.add(rows, [&](int n, int e, float sum) { rows.sums[n][e] = sum; });
    rows.softmax[0] = earlier.softmax[0], rows.softmax[1] = earlier.softmax[1];
  }
  storeRows16(forward, work, line, rows);
}

}  // namespace selscan::cuda::attention
