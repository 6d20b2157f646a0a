// What the gradient of attention is on both precisions, and its kernels for bf16 on tensor cores. The plan is in cuda/attention_grad.cu.
//
// The gradient of q and that of k and v are one loop with the parts exchanged. A block owns lines of two matrices and goes through
// steps of lines of two others:
//
//   own     stream    p = 2^(scale·own₁·stream₁ᵀ − lse)    ds = p·(own₂·stream₂ᵀ − D)    sums
//   q, dy   k, v      (rows of q, keys)                                                  dq = Σ ds·k
//   k, v    q, dy     (keys, rows of q)                                                  dk = Σ ds·q, dv = Σ p·dy
//
// Queries are packed rows (cuda/attention.cuh), so that the sum over a group's heads is part of the stream. ds is without
// 1/√headDim, by which finished sums are multiplied. In bf16, p and ds are rounded before they are multiplied, as dy is.
#pragma once
#include "cuda/attention_tile.cuh"

namespace selscan::cuda::attention {

struct Gradient {
  Geometry g;
  AnyFloat qkv, dy, dqkv;
  const bf16 *plane, *dyPlane;  // precision bf16: qkv and dy, rows `stride` and `dyStride` apart
  int64_t stride, dyStride;
  const std::byte *keys, *values;
  const float *lse, *D;  // (rows, heads)
  bool vectors;

  // lse in units of log 2, as scores are scaled.
  __device__ __forceinline__ float logOf(int64_t at) const { return __fmul_rn(lse[at], Log2e); }
};

// Own lines of a block that computes the gradients of keys: rows of a segment, not packed.
struct KeyWork {
  Place place;
  int kvHead, half;
  Range stream;  // packed rows that see a key of the block
  __device__ __forceinline__ int64_t row(int line) const { return place.sequence.begin + place.first + line; }
  // Packed rows that see key `line`, counted from the stream's first.
  __device__ __forceinline__ Range queriesOf(const Geometry& g, int line) const {
    if (line >= place.count) return {0, 0};
    const int64_t key = place.first + line, end = g.window == 0 ? place.sequence.rows : min(int64_t{place.sequence.rows}, key + g.window);
    return Range{static_cast<int>(key * g.group), static_cast<int>(end * g.group)}.from(stream.first);
  }
};
template <int Size>
__device__ __forceinline__ KeyWork keyWorkOf(const Geometry& g, unsigned block, unsigned halves) {
  const unsigned pair = block / halves;
  const auto kvHeads = static_cast<unsigned>(g.kvHeads);
  KeyWork work{placeOf<Size>(g, pair / kvHeads, 1), static_cast<int>(pair % kvHeads), static_cast<int>(block % halves), {0, 0}};
  if (work.place.count == 0) return work;
  const int first = work.queriesOf(g, 0).first, end = work.queriesOf(g, work.place.count - 1).end;
  work.stream = {first, end};
  return work;
}
// Where the lse and D of a packed row of a segment are.
__device__ __forceinline__ int64_t statisticsAt(const Geometry& g, const Sequence& sequence, int kvHead, int packed) {
  const int row = packed / g.group;
  return int64_t{sequence.begin + row} * g.heads + kvHead * g.group + packed - row * g.group;
}

// A block of Warps · 16 own lines against steps of Lines, two of which are in shared memory: below 99 KB. Of 256 columns the sums
// for k and v are taken 128 at a time, by two blocks: more do not fit the registers.
template <bool OfKeys_, int Width_>
struct GradTile {
  static constexpr bool OfKeys = OfKeys_;
  static constexpr int Width = Width_, Warps = Width == 256 ? 2 : 4, Threads = Warps * 32, Rows = Warps * 16;
  static constexpr int Lines = Width >= 128 ? 32 : 64, Fragments = Lines / 8;
  static constexpr int Columns = OfKeys && Width == 256 ? 128 : Width, Halves = Width / Columns;
  static constexpr int OwnElements = Rows * Width, StreamElements = Lines * Width;
  static constexpr size_t SharedBytes =
      2 * (OwnElements + 2 * StreamElements) * sizeof(bf16) + (OfKeys ? 4 * Lines * sizeof(float) : 0);
  static constexpr int Blocks = blocksHeld(Width == 256 ? 1 : 2, SharedBytes);
};
// The parts of a block's shared memory; the stream's matrices of both steps side by side.
template <class T>
struct GradShared {
  bf16 *own[2], *stream[2];
  float *logs, *D;  // of the stream's lines
  __device__ __forceinline__ explicit GradShared(bf16* shared)
      : own{shared, shared + T::OwnElements},
        stream{shared + 2 * T::OwnElements, shared + 2 * (T::OwnElements + T::StreamElements)},
        logs(reinterpret_cast<float*>(shared + 2 * T::OwnElements + 4 * T::StreamElements)),
        D(logs + 2 * T::Lines) {}
};

// The sums of a warp's 16 own lines: [0] over ds, [1] over p, which q has not.
template <class T>
using GradSums = float[T::OfKeys ? 2 : 1][T::Columns / 8][4];

// One step. logs and D are read at the row (h) of an element or at its column, whichever is the query.
template <class T>
__device__ __forceinline__ void addStep(GradSums<T>& sums, const GradShared<T>& shared, int line, int stage, int column, float scale,
                                        const Range (&seen)[2], const float (&logs)[2], const float (&D)[2]) {
  const bf16 *first = shared.stream[0] + stage * T::StreamElements, *second = shared.stream[1] + stage * T::StreamElements;
  float p[T::Fragments][4], ds[T::Fragments][4];
  multiplyLines<T::Width>(p, shared.own[0], line, first);
  multiplyLines<T::Width>(ds, shared.own[1], line, second);
#pragma unroll
  for (int n = 0; n < T::Fragments; n++)
#pragma unroll
    for (int e = 0; e < 4; e++) {
      const int at = stage * T::Lines + n * 8 + laneIndex() % 4 * 2 + e % 2;
      p[n][e] = exp2Fast(fmaf(p[n][e], scale, -(T::OfKeys ? shared.logs[at] : logs[e / 2])));
      ds[n][e] = __fmul_rn(p[n][e], ds[n][e] - (T::OfKeys ? shared.D[at] : D[e / 2]));
    }
  dropUnseen<T::Fragments>(seen, [&](int n, int e) { p[n][e] = ds[n][e] = 0.0f; });
  __syncwarp();  // redundant: orders no memory; lanes that dropped and lanes that did not meet before ldmatrix, which is .aligned
  multiplyAcross<T::Width>(sums[0], ds, first, column);
  if constexpr (T::OfKeys) multiplyAcross<T::Width>(sums[1], p, second, column);
}

// Writes the sums of a line's columns from `column` on; `at` is its element of column 0.
template <class T>
__device__ __forceinline__ void storeSums(const Gradient& gradient, const float (&sums)[T::Columns / 8][4], int h, int64_t at, int column,
                                          float factor) {
#pragma unroll
  for (int n = 0; n < T::Columns / 8; n++) {
    const int c = column + n * 8 + laneIndex() % 4 * 2;
    storePair(gradient.dqkv, at + c, c, gradient.g.headDim, sums[n][2 * h] * factor, sums[n][2 * h + 1] * factor);
  }
}
template <class T>
__device__ __forceinline__ void clearSums(GradSums<T>& sums) {
#pragma unroll
  for (auto& half : sums)
#pragma unroll
    for (auto& fragment : half)
#pragma unroll
      for (float& sum : fragment) sum = 0.0f;
}

// Goes through the steps of the stream: stage(step) begins to copy one, which arrives while add(step) takes the one before.
template <class Stage, class Add>
__device__ __forceinline__ void throughSteps(int steps, const Stage& stage, const Add& add) {
  stage(0);
  commitCopies();
#pragma unroll 1
  for (int step = 0; step < steps; step++) {
    if (step + 1 < steps) stage(step + 1);
    commitCopies();
    waitCopies<1>();
    __syncthreads();  // this step is there
    add(step);
    __syncthreads();  // and is read by none any more
  }
}

// registers: 184 of <false, 32>, 208 of <false, 64>, 232 of <false, 128>, 248 of <false, 256>
template <class T>
__global__ __launch_bounds__(T::Threads, T::Blocks) void gradQueries(const __grid_constant__ Gradient gradient) {
  constexpr int Width = T::Width;
  SHARED(bf16, memory);
  const GradShared<T> shared(memory);
  const Geometry& g = gradient.g;
  const Work work = workOf<T::Rows>(g, blockIdx.x);
  if (work.tiles == 0) return;
  const Sequence& sequence = work.place.sequence;
  const Range packed{work.place.first, work.place.first + work.place.count};
  stageQueryLines<Width, T::Rows, T::Threads>(shared.own[0], g, sequence, work.kvHead, packed, gradient.plane, gradient.stride,
                                              gradient.vectors);
  stageQueryLines<Width, T::Rows, T::Threads>(shared.own[1], g, sequence, work.kvHead, packed, gradient.dyPlane, gradient.dyStride,
                                              gradient.vectors);
  const auto stage = [&](int step) {
    const auto lines = [&](int half, const std::byte* ring, int64_t column) {
      stageKeyLines<Width, T::Lines, T::Threads>(shared.stream[half] + step % 2 * T::StreamElements, g,
                                                 keyLines(g, work, step * T::Lines, gradient.stride, column), gradient.plane,
                                                 reinterpret_cast<const bf16*>(ring), gradient.vectors);
    };
    lines(0, gradient.keys, g.keyColumn(work.kvHead));
    lines(1, gradient.values, g.valueColumn(work.kvHead));
  };
  const int line = warpIndex() * 16;
  Range seen[2];
  float logs[2] = {}, D[2] = {};
#pragma unroll
  for (int h = 0; h < 2; h++) {
    const int i = line + laneIndex() / 4 + 8 * h;
    seen[h] = work.keysOf(g, i);
    if (i >= work.place.count) continue;
    const int64_t at = statisticsAt(g, sequence, work.kvHead, work.place.first + i);
    logs[h] = gradient.logOf(at), D[h] = gradient.D[at];
  }
  GradSums<T> sums;
  clearSums<T>(sums);
  throughSteps(work.tiles * (KeyTile / T::Lines), stage, [&](int step) {
    const int at = step * T::Lines;
    addStep<T>(sums, shared, line, step % 2, 0, g.scale * Log2e, {seen[0].from(at), seen[1].from(at)}, logs, D);
  });
#pragma unroll
  for (int h = 0; h < 2; h++) {
    const int i = line + laneIndex() / 4 + 8 * h;
    if (i >= work.place.count) continue;
    storeSums<T>(gradient, sums[0], h, work.row(g, i) * g.packed() + int64_t{work.head(g, i)} * g.headDim, 0, g.scale);
  }
}

// registers: 168 of <true, 32>, 232 of <true, 64>, 255 of <true, 128>, 255 of <true, 256>
template <class T>
__global__ __launch_bounds__(T::Threads, T::Blocks) void gradKeys(const __grid_constant__ Gradient gradient) {
  constexpr int Width = T::Width;
  SHARED(bf16, memory);
  const GradShared<T> shared(memory);
  const Geometry& g = gradient.g;
  const KeyWork work = keyWorkOf<T::Rows>(g, blockIdx.x, T::Halves);
  if (work.place.count == 0) return;
  const Sequence& sequence = work.place.sequence;
  const auto stageOwn = [&](bf16* to, int64_t column) {
    stageHalves<Width, T::Rows, T::Threads>(to, g.headDim, gradient.vectors, gradient.plane, [&](int line) -> const bf16* {
      return line < work.place.count ? gradient.plane + work.row(line) * gradient.stride + column : nullptr;
    });
  };
  stageOwn(shared.own[0], g.keyColumn(work.kvHead));
  stageOwn(shared.own[1], g.valueColumn(work.kvHead));
  const auto stage = [&](int step) {
    const Range packed{work.stream.first + step * T::Lines, work.stream.end};
    const int slot = step % 2;
    stageQueryLines<Width, T::Lines, T::Threads>(shared.stream[0] + slot * T::StreamElements, g, sequence, work.kvHead, packed,
                                                 gradient.plane, gradient.stride, gradient.vectors);
    stageQueryLines<Width, T::Lines, T::Threads>(shared.stream[1] + slot * T::StreamElements, g, sequence, work.kvHead, packed,
                                                 gradient.dyPlane, gradient.dyStride, gradient.vectors);
    if (const int line = static_cast<int>(threadIdx.x); line < T::Lines) {
      const bool there = packed.first + line < packed.end;
      const int64_t at = there ? statisticsAt(g, sequence, work.kvHead, packed.first + line) : 0;
      shared.logs[slot * T::Lines + line] = there ? gradient.logOf(at) : 0.0f;
      shared.D[slot * T::Lines + line] = there ? gradient.D[at] : 0.0f;
    }
  };
  const int line = warpIndex() * 16, column = work.half * T::Columns;
  const Range seen[2] = {work.queriesOf(g, line + laneIndex() / 4), work.queriesOf(g, line + laneIndex() / 4 + 8)};
  GradSums<T> sums;
  clearSums<T>(sums);
  throughSteps((work.stream.end - work.stream.first + T::Lines - 1) / T::Lines, stage, [&](int step) {
    const int at = step * T::Lines;
    addStep<T>(sums, shared, line, step % 2, column, g.scale * Log2e, {seen[0].from(at), seen[1].from(at)}, {}, {});
  });
#pragma unroll
  for (int h = 0; h < 2; h++) {
    const int own = line + laneIndex() / 4 + 8 * h;
    if (own >= work.place.count) continue;
    storeSums<T>(gradient, sums[0], h, work.row(own) * g.packed() + g.keyColumn(work.kvHead), column, g.scale);
    storeSums<T>(gradient, sums[1], h, work.row(own) * g.packed() + g.valueColumn(work.kvHead), column, 1.0f);
  }
}

}  // namespace selscan::cuda::attention
