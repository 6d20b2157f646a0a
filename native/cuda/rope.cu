// Rotary position embedding. See lib/ops/rope.ts for the equations, ops/rope.h for the angles.
//
// A block has one row. Its threads make one sine and cosine each, of a pair that all heads of the row share, and leave them in
// shared memory; an angle is one product in 64-bit integers, which wraps at a whole turn, and no f64. Then they take 16 bytes of
// both sides of the pairs at a time. In place the columns that pass are not touched. Bound by memory: 2 elements moved per
// element that turns, and for those that pass where y is not x. Not measured on a GPU yet.
#include "ops/rope.h"

#include "cuda/launch.cuh"
#include "cuda/math.cuh"
#include "cuda/segments.cuh"

namespace selscan::cuda {
namespace {

constexpr unsigned Threads = 128;
static_assert(Threads >= ops::PairsMost, "a thread makes one pair's sine and cosine");

template <class T>
struct Rope {
  const T* x;
  T* y;
  const int32_t* lines;
  int64_t segments, rows;
  int width, headDim, heads, pairs;
  bool inverse, copies;  // copies: y is not x
  ops::Steps steps;
};

// Sine and cosine at `position`, turning by `step`/2⁶⁴ of a turn a position. The angle is whole quarters, and a rest of at most
// an eighth of a turn on either side.
__device__ __forceinline__ void sinCosAt(uint64_t step, int64_t position, float& sine, float& cosine) {
  constexpr uint64_t Eighth = uint64_t{1} << 61;
  const uint64_t turned = step * static_cast<uint64_t>(position) + Eighth;
  const unsigned quarter = static_cast<unsigned>(turned >> 62);
  const int64_t rest = static_cast<int64_t>(turned & ((uint64_t{1} << 62) - 1)) - static_cast<int64_t>(Eighth);
  float s, c;
  sinCos(static_cast<float>(rest) * 3.4061215800865545e-19f, s, c);  // 2π/2⁶⁴
  const float swapped = quarter & 1 ? c : s;
  sine = quarter >= 2 ? -swapped : swapped;
  const float other = quarter & 1 ? s : c;
  cosine = quarter == 1 || quarter == 2 ? -other : other;
}

// Pairs [pair, pair + N) of a head that begins at `column`. Both sides are read before either is written.
template <int N, bool Interleaved, class T>
__device__ __forceinline__ void turnPairs(const Rope<T>& rope, const T* x, T* y, int column, int pair, const float* sines,
                                          const float* cosines) {
  const int first = column + (Interleaved ? 2 * pair : pair), second = first + (Interleaved ? N : rope.pairs);
  float a[N], b[N], s[N], c[N];
  loadVec<N>(x + first, a);
  loadVec<N>(x + second, b);
  loadVec<N>(sines + pair, s);
  loadVec<N>(cosines + pair, c);
  if constexpr (Interleaved && N > 1) {  // two vectors of N/2 pairs each
#pragma unroll
    for (int i = 0; i < N / 2; i++) {
      const float even = a[2 * i], odd = a[2 * i + 1], evenLater = b[2 * i], oddLater = b[2 * i + 1];
      a[2 * i] = fmaf(even, c[i], -odd * s[i]);
      a[2 * i + 1] = fmaf(odd, c[i], even * s[i]);
      b[2 * i] = fmaf(evenLater, c[N / 2 + i], -oddLater * s[N / 2 + i]);
      b[2 * i + 1] = fmaf(oddLater, c[N / 2 + i], evenLater * s[N / 2 + i]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < N; i++) {
      const float left = a[i], right = b[i];
      a[i] = fmaf(left, c[i], -right * s[i]);
      b[i] = fmaf(right, c[i], left * s[i]);
    }
  }
  storeGlobal<N>(y + first, a);
  storeGlobal<N>(y + second, b);
}

// The columns that pass: the others of each head, then those after the heads.
template <int N, class T>
__device__ __forceinline__ void passColumns(const Rope<T>& rope, const T* x, T* y) {
  const int turning = 2 * rope.pairs, beside = (rope.headDim - turning) / N, inHeads = rope.heads * beside;
  const int all = inHeads + (rope.width - rope.heads * rope.headDim) / N;
  for (int i = static_cast<int>(threadIdx.x); i < all; i += Threads) {
    const int column = i < inHeads ? i / beside * rope.headDim + turning + i % beside * N
                                   : rope.heads * rope.headDim + (i - inHeads) * N;
    storeWhole(y + column, *reinterpret_cast<const Vec<T, N>*>(x + column));
  }
}

// registers: 48
template <class T, int N, bool Interleaved>
__global__ __launch_bounds__(Threads) void turnRows(const __grid_constant__ Rope<T> rope) {
  SHARED(float, sines);  // (2, PairsMost): sines, cosines
  float* const cosines = sines + ops::PairsMost;
  const int64_t row = blockIdx.x;
  const SegmentLine segment = segmentFrom(rope.lines, rope.segments, 0, row, rope.rows);
  const bool spare = row < segment.begin;
  const int thread = static_cast<int>(threadIdx.x);
  if (!spare && thread < rope.pairs) {
    float sine, cosine;
    sinCosAt(rope.steps.at[thread], rope.lines[5 * segment.index + 2] + (row - segment.begin), sine, cosine);
    sines[thread] = rope.inverse ? -sine : sine;
    cosines[thread] = cosine;
  }
  __syncthreads();
  const T* x = rope.x + row * rope.width;
  T* y = rope.y + row * rope.width;
  if (spare) {
    const float zeros[N] = {};
    for (int column = thread * N; column < rope.width; column += static_cast<int>(Threads) * N) storeGlobal<N>(y + column, zeros);
    return;
  }
  const int perHead = rope.pairs / N;
  for (int i = thread; i < rope.heads * perHead; i += Threads)
    turnPairs<N, Interleaved>(rope, x, y, i / perHead * rope.headDim, i % perHead * N, sines, cosines);
  if (rope.copies) passColumns<N>(rope, x, y);
}

template <class T, int N>
void launchRows(CudaDevice& device, const Rope<T>& rope, bool interleaved) {
  const Grid grid{static_cast<unsigned>(rope.rows), Threads, 2 * ops::PairsMost * sizeof(float)};
  launch(device, grid, interleaved ? turnRows<T, N, true> : turnRows<T, N, false>, rope);
}

void rope(const Call& call) {
  const auto [x, segments] = call.in<2>();
  const auto [y] = call.out<1>();
  if (!y) return;
  const ops::Turn turn = ops::turnOf(call.attributes);
  withType(x.dtype, [&, x = x, segments = segments, y = y]<class T>() {
    constexpr int N = 16 / sizeof(T);
    const Rope<T> rope{dataOf<T>(x), dataOf<T>(y), segments.i32(), segments[0], x[0], static_cast<int>(x[1]),
                       static_cast<int>(turn.headDim), static_cast<int>(turn.heads), static_cast<int>(turn.pairs), turn.inverse,
                       x.data != y.data, ops::stepsOf(turn, call.attributes.number("base"))};
    const bool vectors = turn.pairs % N == 0 && turn.headDim % N == 0 && x[1] % N == 0;
    if (vectors) launchRows<T, N>(deviceOf(call), rope, turn.interleaved);
    else launchRows<T, 1>(deviceOf(call), rope, turn.interleaved);
  });
}

KERNEL(rope, cuda, "x segments -> y; headDim heads base rotary interleaved inverse", .run = rope, .limit = ops::ropeLimit,
       .checkInputs = ops::checkRope, .inPlace = {{0, 0}})

}  // namespace
}  // namespace selscan::cuda
