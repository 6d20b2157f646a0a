// One block's work in the backward selective scan: some channels of a group, walked through segments from the last row to the
// first. See selective_scan_grad.cu for the mathematics and the plan.
#pragma once
#include "cuda/scan_tile.cuh"

namespace selscan::cuda {

// Rows whose states and decays a lane keeps in registers, and states that it holds of its channel: 2·8·4 registers.
constexpr int GradTile = 8, GradHeld = 4;
constexpr int GradTiles = ops::ScanChunk / GradTile;

template <class T>
struct ScanGrad {
  const T *dy, *x, *delta, *B, *C, *z;               // dy, z: null when absent
  const float *dfinal, *A, *D, *bias, *saved;        // dfinal, D, bias: null when absent
  const int32_t* segments;
  T *dx, *ddelta, *dz;                               // null: nobody reads it, here and below
  float *dinitial, *dA, *dD, *dbias, *bands;         // dA, dD, dbias: [part] of the shape; bands: [block][row][dB, dC][state]
  int64_t rows;
  int inner, segmentCount, parts, blocksPerGroup, groups, state;
  bool softplus, vectors;                            // vectors: 16 bytes of a row are aligned and belong to one block
};

// Rows of a chunk, and the item of `saved` with the states before them.
struct ScanGradPlace {
  int row, rows, saved;
};

// What the threads of a block share: one chunk of x, Δ, B, C, two tiles of dy and z, and a tile of what each warp adds to dB and
// dC. dx, dz and ddelta take the places of dy, z and x until they are written out.
template <class T, int Lanes, int Threads>
struct ScanGradShared {
  static constexpr int Channels = Threads / Lanes, States = Lanes * GradHeld;
  float kept[GradTiles - 2][Threads][GradHeld];  // states before tiles 1 to 6: those before 0 are saved, before 7 at hand
  float delta[ops::ScanChunk][Channels];
  float B[ops::ScanChunk][States], C[ops::ScanChunk][States];
  float bands[Threads / 32][GradTile][2][States];
  T x[ops::ScanChunk][Channels];
  T dy[2][GradTile][Channels], z[2][GradTile][Channels];
  float dp[GradTile][Channels];
  float bias[Channels], D[Channels];
  ScanGradPlace place;
  int index[Threads];
  float dD[Threads], dbias[Threads];  // each thread's own sums: registers are for states
};

// Sums v[0 … Width) over the lanes that differ in the bits Mask, Mask/2 … Last. Each step a lane gives away the half of the sums
// that its partner goes on with, so that Width/2 shuffles do for the first step and half as many for each further one; in the
// end v[0] is sum number Σ (Width/2, Width/4 … for the set bits), the next ones follow. One sum left: all lanes get it.
template <int Width, int Mask, int Last, int N>
__device__ __forceinline__ void foldLanes(float (&v)[N], int lane) {
  if constexpr (Mask >= Last) {
    if constexpr (Width > 1) {
      const bool upper = (lane & Mask) != 0;
#pragma unroll
      for (int k = 0; k < Width / 2; k++) {
        const float given = upper ? v[k] : v[k + Width / 2], own = upper ? v[k + Width / 2] : v[k];
        v[k] = own + __shfl_xor_sync(~0u, given, Mask);
      }
    } else {
      v[0] += __shfl_xor_sync(~0u, v[0], Mask);
    }
    foldLanes<(Width > 1 ? Width / 2 : 1), Mask / 2, Last>(v, lane);
  }
}

// σ(v) from Δ = softplus(v): 1 − e^−Δ, by its series where the difference would lose digits (Δ⁵/720 is below 2⁻²⁴ at 1/8).
__device__ __forceinline__ float softplusSlope(float delta) {
  const float cubic = fmaf(-delta, fmaf(-delta, 1.0f / 120, 1.0f / 24), 1.0f / 6);
  const float series = delta * fmaf(-delta, fmaf(-delta, cubic, 0.5f), 1.0f);
  return delta < 0.125f ? series : 1.0f - expFast(-delta);
}

template <class T, int Lanes, int Threads>
struct ScanGradWalk {
  using Shared = ScanGradShared<T, Lanes, Threads>;
  static constexpr int Tile = GradTile, Held = GradHeld, Channels = Shared::Channels, States = Shared::States;
  static constexpr int Owned = Lanes < Tile ? Tile / Lanes : 1;    // rows of a tile that a lane finishes for its channel
  static constexpr int Sharers = Lanes > Tile ? Lanes / Tile : 1;  // lanes that hold the same row's sums; the first finishes it
  static constexpr int VecMax = 16 / sizeof(T);

  const ScanGrad<T>& scan;
  Shared& shared;
  int thread, lane, j, c;  // index in the block, in the warp, among the channel's lanes; the channel in the block
  int first, channels;     // the block's first channel, and how many it has
  float A[Held], h[Held], dh[Held], dA[Held] = {};  // A·log₂ e; dh: the gradient that the rows behind have carried here

  __device__ ScanGradWalk(const ScanGrad<T>& scan, Shared& shared, int block) : scan(scan), shared(shared) {
    shared.index[threadIdx.x] = threadIdx.x;
    locate();
    const int perGroup = scan.inner / scan.groups, group = block / scan.blocksPerGroup;
    const int within = block % scan.blocksPerGroup * Channels;
    first = group * perGroup + within;
    channels = min(perGroup - within, Channels);
    loadStates(scan.A, 0, A);
#pragma unroll
    for (int i = 0; i < Held; i++) A[i] *= Log2e;
    for (int i = thread; i < Channels; i += Threads) {
      shared.bias[i] = scan.bias && i < channels ? scan.bias[first + i] : 0.0f;
      shared.D[i] = scan.D && i < channels ? scan.D[first + i] : 0.0f;
    }
    shared.dD[thread] = shared.dbias[thread] = 0;
  }

  // Reads the thread's index anew: what a phase derives from it the compiler then does not keep in registers over the others.
  __device__ __forceinline__ void locate() {
    thread = shared.index[threadIdx.x];
    lane = thread % 32;
    j = thread % Lanes;
    c = thread / Lanes;
  }
  __device__ __forceinline__ int group() const { return static_cast<int>(blockIdx.x) / scan.blocksPerGroup; }
  __device__ __forceinline__ int firstRow() const { return Lanes < Tile ? j * Owned : j / Sharers; }
  // The lane's states in item `index` of a tensor [index][inner][state].
  __device__ __forceinline__ int64_t statesAt(int index) const {
    return (int64_t{index} * scan.inner + first + c) * scan.state + j * Held;
  }

  __device__ __forceinline__ void loadStates(const float* from, int index, float (&to)[Held]) const {
    const int count = from && c < channels ? scan.state - j * Held : 0;
    if (scan.state % Held == 0 && count > 0) return loadVec<Held>(from + statesAt(index), to);
#pragma unroll
    for (int i = 0; i < Held; i++) to[i] = i < count ? from[statesAt(index) + i] : 0.0f;
  }
  __device__ __forceinline__ void storeStates(float* to, int index, const float (&from)[Held]) const {
    const int count = to && c < channels ? scan.state - j * Held : 0;
    if (scan.state % Held == 0 && count > 0) return storeVec<Held>(to + statesAt(index), from);
#pragma unroll
    for (int i = 0; i < Held; i++)
      if (i < count) to[statesAt(index) + i] = from[i];
  }

  // Some rows on their way to shared memory: `count` from `row` on, zeros up to `all` rows and beyond the block's channels.
  __device__ __forceinline__ void copyRows(const T* from, T (*to)[Channels], int row, int count, int all) const {
    if (from == nullptr) return;
    const int step = scan.vectors ? VecMax : 1, perRow = scan.vectors ? Channels / VecMax : Channels;
#pragma unroll 1
    for (int i = thread; i < all * perRow; i += Threads) {
      const int r = i / perRow, at = i % perRow * step;
      const bool valid = r < count && at < channels;
      const T* source = valid ? from + int64_t{row + r} * scan.inner + first + at : from;
      if (scan.vectors) copyAsync16(&to[r][at], source, valid);
      else if constexpr (sizeof(T) == 4) copyAsync4(&to[r][at], source, valid);
      else to[r][at] = valid ? *source : fromFloat<T>(0.0f);
    }
  }
  __device__ __forceinline__ void stageTile(int row, int tile, int rows) {
    copyRows(scan.dy, shared.dy[tile % 2], row + tile * Tile, rows - tile * Tile, Tile);
    copyRows(scan.z, shared.z[tile % 2], row + tile * Tile, rows - tile * Tile, Tile);
    commitCopies();
  }

  // Δ of a chunk from the raw values. Rows up to the end of a tile that are not there have x = Δ = 0: they leave states and
  // gradients as they are.
  __device__ __forceinline__ void computeDelta(const T (*raw)[Channels], int rows, int all) {
#pragma unroll 1
    for (int i = thread; i < all * (Channels / 4); i += Threads) {
      const int r = i / (Channels / 4), at = i % (Channels / 4) * 4;
      float delta[4];
      loadVec<4>(&raw[r][at], delta);
#pragma unroll
      for (int k = 0; k < 4; k++) delta[k] = r < rows ? stepSize(delta[k] + shared.bias[at + k], scan.softplus) : 0.0f;
      storeVec<4>(&shared.delta[r][at], delta);
    }
  }
  // B and C of a chunk as f32; zeros beyond the rows and beyond the states.
  template <int V>
  __device__ __forceinline__ void loadBands(int row, int rows, int all) {
    constexpr int PerRow = States / V;
    const int64_t width = int64_t{scan.groups} * scan.state;
#pragma unroll 1
    for (int i = thread; i < all * PerRow; i += Threads) {
      const int r = i / PerRow, n = i % PerRow * V;
      float b[V] = {}, c[V] = {};
      if (r < rows && n < scan.state) {
        const int64_t from = (row + r) * width + group() * scan.state + n;
        loadVec<V>(scan.B + from, b);
        loadVec<V>(scan.C + from, c);
      }
      storeVec<V>(&shared.B[r][n], b);
      storeVec<V>(&shared.C[r][n], c);
    }
  }
  // Everything of a chunk but z and dy of tiles before the last. All copies are under way before the first one is waited for.
  __device__ __forceinline__ void loadChunk(const ScanGradPlace& place) {
    const int last = (place.rows - 1) / Tile, all = (last + 1) * Tile;
    auto* raw = reinterpret_cast<T(*)[Channels]>(shared.kept);  // nothing is kept yet
    static_assert(sizeof(shared.kept) >= sizeof(T) * ops::ScanChunk * Channels);
    copyRows(scan.delta, raw, place.row, place.rows, all);
    copyRows(scan.x, shared.x, place.row, place.rows, all);
    commitCopies();
    stageTile(place.row, last, place.rows);
    if (scan.state % Held == 0) loadBands<Held>(place.row, place.rows, all);
    else loadBands<1>(place.row, place.rows, all);
    loadStates(scan.saved, place.saved, h);
    waitCopies<1>();
    __syncthreads();
    computeDelta(raw, place.rows, all);
    __syncthreads();
  }

  // h behind a tile from h before it, as the forward pass does.
  __device__ __forceinline__ void advance(int row) {
#pragma unroll
    for (int r = 0; r < Tile; r++) {
      const float delta = shared.delta[row + r][c], input = delta * toFloat(shared.x[row + r][c]);
      float B[Held];
      loadVec<Held>(&shared.B[row + r][j * Held], B);
#pragma unroll
      for (int i = 0; i < Held; i++) h[i] = fmaf(exp2Fast(delta * A[i]), h[i], input * B[i]);
    }
  }

  // advance() that keeps every state and decay; y becomes C·h of the lane's own rows.
  __device__ __forceinline__ void recompute(int row, float (&before)[Tile][Held], float (&decay)[Tile][Held], float (&y)[Tile]) {
#pragma unroll
    for (int r = 0; r < Tile; r++) {
      const float delta = shared.delta[row + r][c], input = delta * toFloat(shared.x[row + r][c]);
      float B[Held], C[Held];
      loadVec<Held>(&shared.B[row + r][j * Held], B);
      loadVec<Held>(&shared.C[row + r][j * Held], C);
      y[r] = 0;
#pragma unroll
      for (int i = 0; i < Held; i++) {
        before[r][i] = h[i];
        decay[r][i] = exp2Fast(delta * A[i]);
        h[i] = fmaf(decay[r][i], h[i], input * B[i]);
        y[r] = fmaf(h[i], C[i], y[r]);
      }
    }
    if (scan.dz) foldLanes<Tile, Lanes / 2, 1>(y, lane);
  }

  // dp = dy·silu(z) of the lane's own rows; their dz = dy·silu′(z)·(C·h + D·x) takes the place of z.
  __device__ __forceinline__ void openGate(int row, int buffer, const float (&y)[Tile]) {
    if (j % Sharers == 0) {
#pragma unroll
      for (int o = 0; o < Owned; o++) {
        const int r = firstRow() + o;
        const float dy = scan.dy ? toFloat(shared.dy[buffer][r][c]) : 0.0f;
        shared.dp[r][c] = dy;
        if (scan.z == nullptr) continue;
        const float z = toFloat(shared.z[buffer][r][c]), s = sigmoid(z);
        shared.dp[r][c] = dy * (z * s);
        const float p = fmaf(shared.D[c], toFloat(shared.x[row + r][c]), y[o]);
        shared.z[buffer][r][c] = fromFloat<T>(dy * (s * fmaf(z, 1.0f - s, 1.0f)) * p);
      }
    }
    __syncwarp();
  }

  // The rows of a tile from the last to the first. h holds the states behind the tile; `sumB` and `sumA` become the lane's part
  // of Σ B·dh and Σ A·log₂ e·exp(ΔA)·h·dh.
  __device__ __forceinline__ void retreat(int row, const float (&before)[Tile][Held], const float (&decay)[Tile][Held],
                                          float (&sumB)[Tile], float (&sumA)[Tile]) {
#pragma unroll
    for (int r = Tile - 1; r >= 0; r--) {
      const float delta = shared.delta[row + r][c], dp = shared.dp[r][c];
      const float input = delta * toFloat(shared.x[row + r][c]);
      float B[Held], C[Held], toBands[2 * Held];
      loadVec<Held>(&shared.B[row + r][j * Held], B);
      loadVec<Held>(&shared.C[row + r][j * Held], C);
      sumB[r] = sumA[r] = 0;
#pragma unroll
      for (int i = 0; i < Held; i++) {
        const float grad = fmaf(dp, C[i], dh[i]);
        toBands[i] = grad * input;
        toBands[Held + i] = dp * (r + 1 < Tile ? before[r + 1 < Tile ? r + 1 : r][i] : h[i]);
        sumB[r] = fmaf(grad, B[i], sumB[r]);
        dh[i] = grad * decay[r][i];
        const float through = dh[i] * before[r][i];
        sumA[r] = fmaf(through, A[i], sumA[r]);
        dA[i] = fmaf(through, delta, dA[i]);
      }
      addBands(r, toBands);
    }
  }

  // dB and dC of one row: summed over the warp's channels; each warp has its place.
  __device__ __forceinline__ void addBands(int r, float (&v)[2 * Held]) {
    constexpr int Count = Lanes / 4;  // sums that a lane is left with
    foldLanes<2 * Held, 16, Lanes>(v, lane);
    const int sum = (lane & 16 ? 4 : 0) + (Lanes <= 8 && lane & 8 ? 2 : 0) + (Lanes == 4 && lane & 4 ? 1 : 0);
    float* to = &shared.bands[thread / 32][r][sum / Held][j * Held + sum % Held];
#pragma unroll
    for (int k = 0; k < Count; k++) to[k] = v[k];
  }

  // One tile: h and the gradients carried go in, dh of the rows before comes out; dx, ddelta and dz stay in shared memory.
  __device__ __forceinline__ void gradTile(int row, int buffer, int count) {
    float before[Tile][Held], decay[Tile][Held], sumB[Tile], sumA[Tile];
    recompute(row, before, decay, sumB);
    openGate(row, buffer, sumB);
    retreat(row, before, decay, sumB, sumA);
    foldLanes<Tile, Lanes / 2, 1>(sumB, lane);
    foldLanes<Tile, Lanes / 2, 1>(sumA, lane);
    __syncwarp();  // all lanes of a channel have read x and dy
    if (j % Sharers != 0) return;
#pragma unroll
    for (int o = 0; o < Owned; o++) {
      const int r = firstRow() + o;
      const float delta = shared.delta[row + r][c], x = toFloat(shared.x[row + r][c]), dp = shared.dp[r][c];
      const float ddelta = fmaf(x, sumB[o], sumA[o] * Ln2) * (scan.softplus ? softplusSlope(delta) : 1.0f);
      shared.dy[buffer][r][c] = fromFloat<T>(fmaf(delta, sumB[o], dp * shared.D[c]));
      shared.x[row + r][c] = fromFloat<T>(ddelta);
      shared.dD[thread] = fmaf(dp, x, shared.dD[thread]);
      if (r < count) shared.dbias[thread] += ddelta;
    }
  }

  // A finished tile to global memory: the warps' parts of dB and dC added in order.
  __device__ __forceinline__ void flush(int begin, int tile, int rows) const {
    const int row = begin + tile * Tile, count = min(rows - tile * Tile, Tile), state = scan.state;
    if (scan.bands) {
#pragma unroll 1
      for (int i = thread; i < Tile * 2 * States; i += Threads) {
        const int r = i / (2 * States), which = i / States % 2, n = i % States;
        if (r >= count || n >= state) continue;
        float sum = shared.bands[0][r][which][n];
#pragma unroll
        for (int w = 1; w < Threads / 32; w++) sum += shared.bands[w][r][which][n];
        scan.bands[((blockIdx.x * scan.rows + row + r) * 2 + which) * state + n] = sum;
      }
    }
    const int64_t stride = scan.inner;
    const auto write = [&](T* to, const T(*from)[Channels]) {
      if (to) storeRows<Threads, Channels>(to + row * stride + first, *from, stride, count, channels, scan.vectors);
    };
    write(scan.dx, shared.dy[tile % 2]);
    write(scan.dz, shared.z[tile % 2]);
    write(scan.ddelta, shared.x + tile * Tile);
  }

  // The rows [place.row, place.row + place.rows) of a chunk. Behind the forward sweep, `place` is read from shared memory:
  // registers are for states.
  __device__ __forceinline__ void gradChunk(const ScanGradPlace& place) {
    int tile;
    const int last = (place.rows - 1) / Tile;
    __syncthreads();  // the chunk behind is written out
    if (thread == 0) shared.place = place;
    loadChunk(place);
#pragma unroll 1
    for (tile = 0; tile < last; tile++) {
      advance(tile * Tile);
      if (tile + 1 < last) storeVec<Held>(shared.kept[tile][thread], h);
    }
#pragma unroll 1
    for (; tile >= 0; tile--) {
      waitCopies<0>();
      __syncthreads();  // the tile is there, and the one behind it is written out
      locate();
      if (tile > 0) stageTile(shared.place.row, tile - 1, shared.place.rows);
      locate();
      gradTile(tile * Tile, tile % 2, shared.place.rows - tile * Tile);
      __syncthreads();
      locate();
      flush(shared.place.row, tile, shared.place.rows);
      if (tile == 1) loadStates(scan.saved, shared.place.saved, h);
      else if (tile > 1) loadVec<Held>(shared.kept[tile - 2][thread], h);
    }
  }

  __device__ __forceinline__ void gradSegment(int s) {
    const Segment segment = readSegment(scan.segments, s);
    loadStates(isUsed(segment) ? scan.dfinal : nullptr, s, dh);
#pragma unroll 1
    for (int k = isUsed(segment) ? (segment.end - segment.begin - 1) / ops::ScanChunk : -1; k >= 0; k--) {
      const int row = segment.begin + k * ops::ScanChunk;
      gradChunk({row, min(segment.end - row, ops::ScanChunk), static_cast<int>(savedChunk(segment.begin, s)) + k});
    }
    storeStates(scan.dinitial, s, dh);
  }

  // dA, dD and dbias of the part's rows.
  __device__ __forceinline__ void finish(int part) {
    storeStates(scan.dA, part, dA);
    float dD = shared.dD[thread], dbias = shared.dbias[thread];
#pragma unroll
    for (int mask = Lanes / 2; mask > 0; mask /= 2) {
      dD += __shfl_xor_sync(~0u, dD, mask);
      dbias += __shfl_xor_sync(~0u, dbias, mask);
    }
    if (j != 0 || c >= channels) return;
    if (scan.dD) scan.dD[int64_t{part} * scan.inner + first + c] = dD;
    if (scan.dbias) scan.dbias[int64_t{part} * scan.inner + first + c] = dbias;
  }
};

}  // namespace selscan::cuda
