// The parts of the forward selective scan: what a block works on, and what it does with a tile of rows. The plan is in
// cuda/selective_scan.cu.
#pragma once
#include "cuda/scan_tile.cuh"

namespace selscan::cuda::forward {

constexpr int Threads = 128;
constexpr int Rows = 32;        // of a tile; states are saved at the start of every second one
constexpr int PieceRows = 512;  // of a segment that is split
static_assert(ops::ScanChunk % Rows == 0 && PieceRows % ops::ScanChunk == 0);

template <class T>
struct Scan {
  const T *x, *delta, *B, *C, *z;  // null: absent
  const float *A, *D, *bias, *initial;
  float* carried;
  T* y;  // null: nobody reads it
  float *final, *saved;
  const int32_t* segments;
  int64_t rows, inner, bands, perGroup;  // perGroup: channels of a group
  int state, lines;
  bool softplus, rowVectors, bandVectors;  // vectors: 16 bytes at a time
  unsigned blocks, blocksPerGroup;         // of channels
  float *ends, *totals;  // split: [piece][inner][state], what a piece starts from, and [piece][inner], its ΣΔ; null: not split
};

// Rows [begin, begin + rows) of segment s; no rows: nothing to do but what an empty segment needs.
struct Piece {
  Segment segment;
  int s, begin, rows;
  int64_t slot;  // in ends
  bool last;     // of its segment
};

// Where the first piece of segment s lies among the pieces; like saved states, but every PieceRows rows.
__device__ __forceinline__ int64_t firstSlot(int begin, int s) { return begin / PieceRows + s; }
__device__ __forceinline__ int pieceCount(const Segment& segment) {
  return (segment.end - segment.begin + PieceRows - 1) / PieceRows;
}

// The piece in that slot, or one without rows.
template <class T>
__device__ __forceinline__ Piece pieceAt(const Scan<T>& scan, int slot) {
  if (scan.ends == nullptr) {
    const Segment segment = readSegment(scan.segments, slot);
    return {segment, slot, segment.begin, segment.end - segment.begin, 0, true};
  }
  const int s = lineWhere(scan.segments, scan.lines, [&](const Segment& segment, int line) {
    const int64_t first = firstSlot(segment.begin, line);
    return slot >= first && slot < first + pieceCount(segment);
  });
  if (s < 0) return {{}, 0, 0, 0, slot, false};
  const Segment segment = readSegment(scan.segments, s);
  const int begin = segment.begin + static_cast<int>(slot - firstSlot(segment.begin, s)) * PieceRows;
  const bool last = begin + PieceRows >= segment.end;
  return {segment, s, begin, last ? segment.end - begin : PieceRows, slot, last};
}

// What segment s starts from; null: zeros.
template <class T>
__device__ __forceinline__ const float* stateBefore(const Scan<T>& scan, const Segment& segment, int s) {
  if (!isUsed(segment)) return nullptr;
  const int64_t size = scan.inner * scan.state;
  if (scan.initial) return scan.initial + s * size;
  return scan.carried && segment.from > 0 ? scan.carried + segment.from * size : nullptr;
}

// Zeros in the spare rows before segment s and, for the last line, in those after all segments: `columns` ≤ Width columns from
// `first` on.
template <int Width, class T>
__device__ __forceinline__ void zeroSpareRows(const Scan<T>& scan, const Segment& segment, int s, int64_t first, int columns) {
  const bool used = isUsed(segment), last = s == scan.lines - 1;
  if (!used && !last) return;
  const int before = endBefore(scan.segments, s);
  const auto zero = [&](int64_t begin, int64_t end) {
    zeroRows<Threads, Width>(scan.y + first, scan.inner, begin, end, columns, scan.rowVectors);
  };
  if (used) zero(before, segment.begin);
  if (last) zero(used ? segment.end : before, scan.rows);
}

// One channel: N of its states in this lane.
template <int S, int N>
struct Channel {
  float h[N], decay[N];  // decay: A·log2 e

  // h = exp(ΔA) h + Δx B, and this lane's part of C·h.
  __device__ __forceinline__ float advance(float delta, float input, const float (&B)[N], const float (&C)[N]) {
    float terms[N];
#pragma unroll
    for (int i = 0; i < N; i++) {
      h[i] = fmaf(exp2Fast(__fmul_rn(delta, decay[i])), h[i], __fmul_rn(input, B[i]));
      terms[i] = __fmul_rn(h[i], C[i]);
    }
    return sumNeighbours(terms);
  }
  // From A and a state, both null or of this channel; `n`: this lane's first state.
  __device__ __forceinline__ void load(const float* A, const float* start, int n, int state) {
#pragma unroll
    for (int i = 0; i < N; i++) h[i] = decay[i] = 0.0f;
    if (A) loadStates(A, n, state, state == S * N, decay);
    if (start) loadStates(start, n, state, state == S * N, h);
#pragma unroll
    for (int i = 0; i < N; i++) decay[i] = __fmul_rn(decay[i], Log2e);
  }
  __device__ __forceinline__ void store(float* to, int n, int state) const { storeStates(to, n, state, state == S * N, h); }
};

// y = (C·h + D·x)·silu(z)
template <class T>
__device__ __forceinline__ float finish(float sum, float D, float x, const T* z) {
  const float y = fmaf(D, x, sum);
  return z ? __fmul_rn(y, silu(toFloat(*z))) : y;
}

// Shared memory of a block.
template <class T, int S, int N>
struct Tile {
  static constexpr int Channels = Threads / S, State = S * N;
  struct Raw {
    alignas(16) T x[Rows][Channels], delta[Rows][Channels], z[Rows][Channels];  // y takes the place of x
    alignas(16) T B[Rows][State], C[Rows][State];
  };
  Raw raw[2];
  alignas(16) float4 steps[Rows / 2][Channels];  // Δ and Δ·x of a row, and of the next
  alignas(16) float bands[Rows][2 * State];      // as LaneBands
};

// The block's part of the work.
struct Place {
  int64_t channel, band;  // its first channel, and its group's first column of B and C
  int channels;
};

template <int Channels, class T>
__device__ __forceinline__ Place placeOf(const Scan<T>& scan, unsigned block) {
  const int64_t group = block / scan.blocksPerGroup, within = int64_t{block % scan.blocksPerGroup} * Channels;
  return {group * scan.perGroup + within, group * scan.state, static_cast<int>(min(int64_t{Channels}, scan.perGroup - within))};
}

template <bool Ends, class T, int S, int N>
__device__ __forceinline__ void stageTile(const Scan<T>& scan, const Place& place, int64_t row, int rows,
                                          typename Tile<T, S, N>::Raw& raw) {
  constexpr int Channels = Threads / S;
  const int64_t at = row * scan.inner + place.channel, band = row * scan.bands + place.band;
  stageRows<Threads, Channels>(raw.x[0], scan.x + at, scan.inner, rows, place.channels, scan.rowVectors);
  stageRows<Threads, Channels>(raw.delta[0], scan.delta + at, scan.inner, rows, place.channels, scan.rowVectors);
  if (!Ends && scan.z) stageRows<Threads, Channels>(raw.z[0], scan.z + at, scan.inner, rows, place.channels, scan.rowVectors);
  stageRows<Threads, S * N>(raw.B[0], scan.B + band, scan.bands, rows, scan.state, scan.bandVectors);
  stageRows<Threads, S * N>(raw.C[0], scan.C + band, scan.bands, rows, scan.state, scan.bandVectors);
}

// Δ and Δ·x of all rows, two rows at a time; the second of the last two may be no row, and is not read.
template <class T, int S, int N>
__device__ __forceinline__ void prepareSteps(const Scan<T>& scan, Tile<T, S, N>& tile, const typename Tile<T, S, N>::Raw& raw,
                                             int rows, float bias) {
  constexpr int Channels = Threads / S;
  const int c = static_cast<int>(threadIdx.x % Channels);
#pragma unroll 1
  for (int row = static_cast<int>(threadIdx.x / Channels) * 2; row < rows; row += 2 * S) {
    const float first = stepSize(toFloat(raw.delta[row][c]) + bias, scan.softplus);
    const float second = stepSize(toFloat(raw.delta[row + 1][c]) + bias, scan.softplus);
    tile.steps[row / 2][c] = make_float4(first, first * toFloat(raw.x[row][c]), second, second * toFloat(raw.x[row + 1][c]));
  }
}

// The rows of a tile for one channel per S lanes: S rows at a time, what is left one by one.
template <class T, int S, int N>
__device__ __forceinline__ void advanceRows(const Scan<T>& scan, Tile<T, S, N>& tile, typename Tile<T, S, N>::Raw& raw, int rows,
                                            Channel<S, N>& channel, float D) {
  const int j = static_cast<int>(threadIdx.x % S), c = static_cast<int>(threadIdx.x / S);
  float B[N], C[N];
  int row = 0;
#pragma unroll 1
  for (; row + S <= rows; row += S) {
    float4 steps;
    const float sum = sumTransposed<S>(j, [&](int k) {
      if (k % 2 == 0) steps = tile.steps[(row + k) / 2][c];
      LaneBands<S, N>::read(tile.bands[row + k], j, B, C);
      return k % 2 == 0 ? channel.advance(steps.x, steps.y, B, C) : channel.advance(steps.z, steps.w, B, C);
    });
    T& x = raw.x[row + j][c];
    x = fromFloat<T>(finish(sum, D, toFloat(x), scan.z ? &raw.z[row + j][c] : nullptr));
  }
#pragma unroll 1
  for (; row < rows; row++) {
    const float4 steps = tile.steps[row / 2][c];
    LaneBands<S, N>::read(tile.bands[row], j, B, C);
    const float sum = sumLanes<S>(channel.advance(row % 2 ? steps.z : steps.x, row % 2 ? steps.w : steps.y, B, C));
    if (j == 0) raw.x[row][c] = fromFloat<T>(finish(sum, D, toFloat(raw.x[row][c]), scan.z ? &raw.z[row][c] : nullptr));
  }
}

// The states alone, and ΣΔ.
template <class T, int S, int N>
__device__ __forceinline__ float advanceEnds(const Tile<T, S, N>& tile, int rows, Channel<S, N>& channel) {
  const int j = static_cast<int>(threadIdx.x % S), c = static_cast<int>(threadIdx.x / S);
  float total = 0.0f, B[N], C[N];
#pragma unroll 2
  for (int row = 0; row < rows; row++) {
    const float4 steps = tile.steps[row / 2][c];
    const float delta = row % 2 ? steps.z : steps.x;
    LaneBands<S, N>::read(tile.bands[row], j, B, C);
    channel.advance(delta, row % 2 ? steps.w : steps.y, B, C);
    total += delta;
  }
  return total;
}

}  // namespace selscan::cuda::forward
