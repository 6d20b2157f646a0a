// Head and loss in one: cross entropy of x·Wᵀ + bias. See lib/ops/linear-cross-entropy.ts for the equations.
//
// Logits are made a piece at a time, some rows by some words, small enough to stay in L2. Forward: a block follows each row
// through the piece in chunks of 4096 words, keeping the greatest logit and the sum of exponentials against it; the chunks are
// the same whatever the pieces are. Gradient: the piece's logits become planes of dlogits in the epilogue of their product and
// are never in memory as f32; dx continues over the pieces of words and dweight over those of rows, in order; dbias adds the planes
// up, 128 rows at a time. Bound by the tensor cores: one product forward, three backward. Not measured on a GPU yet.
#include "ops/linear_cross_entropy.h"

#include <cfloat>

#include "cuda/block.cuh"
#include "cuda/cublas.h"
#include "cuda/gemm.cuh"
#include "cuda/partials.cuh"

namespace selscan::cuda {
namespace {

using ops::TargetLoss;

constexpr int64_t Chunk = 4096;                  // words that a block reduces at once, and words of a piece in the gradient
constexpr int64_t LogitsMax = int64_t{8} << 20;  // of a piece forward, but for one chunk: 32 MiB

// Rows of a piece: small vocabularies need more of them to fill the device.
int64_t pieceRows(int64_t vocab) { return vocab <= 1024 ? 8192 : 2048; }

__device__ __forceinline__ bool ignored(const TargetLoss& loss, int64_t row) { return loss.targets[row] == loss.ignore; }

// What one row has seen of its logits.
struct RowState {
  double exponentials, logits;  // Σ e^(logit − greatest), Σ logit
  float greatest, target;
};

struct SeenPiece {
  const float* logits;  // rows of `stride`
  const float* bias;    // of the piece's words; null: none
  RowState* states;     // of the piece's rows, between two pieces
  float *losses, *logsumexp;
  int64_t row, word, words, stride;
};

constexpr int Threads = 256, PerThread = static_cast<int>(Chunk) / Threads;

struct Scratch {
  float greatest[WarpMax];
  double sums[WarpMax];
};

// Adds a chunk of `count` logits at `line`, with their bias, to the state, the same in all threads.
__device__ __forceinline__ void seeChunk(const float* line, const float* bias, int64_t count, RowState& state, Scratch& scratch) {
  float logits[PerThread], greatest = state.greatest, exponentials = 0, total = 0;
#pragma unroll
  for (int i = 0; i < PerThread; i += 4) {
    const int at = i * Threads + static_cast<int>(threadIdx.x) * 4;
    float four[4] = {-FLT_MAX, -FLT_MAX, -FLT_MAX, -FLT_MAX};
    if (at < count) loadVec<4>(line + at, four);
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const bool there = at + j < count;
      if (bias && there) four[j] += bias[at + j];
      logits[i + j] = there ? four[j] : -FLT_MAX;
      greatest = fmaxf(greatest, logits[i + j]);
      total += there ? four[j] : 0.0f;
    }
  }
  greatest = overBlock(Maximum{}, greatest, -FLT_MAX, scratch.greatest);
#pragma unroll
  for (int i = 0; i < PerThread; i++) exponentials += logits[i] == -FLT_MAX ? 0.0f : expFast(logits[i] - greatest);
  state.exponentials *= expf(state.greatest - greatest);
  state.exponentials += overBlock(Sum{}, double{exponentials}, 0.0, scratch.sums);
  state.logits += overBlock(Sum{}, double{total}, 0.0, scratch.sums);
  state.greatest = greatest;
}

// A block for each row of the piece.
// registers: 96
__global__ __launch_bounds__(Threads) void seeLogits(const SeenPiece piece, const TargetLoss loss) {
  SHARED(Scratch, scratch);
  const int64_t row = piece.row + blockIdx.x;
  const float* line = piece.logits + int64_t{blockIdx.x} * piece.stride;
  RowState state{0, 0, -FLT_MAX, __int_as_float(0x7fffffff)};
  if (piece.word > 0) state = piece.states[blockIdx.x];
  for (int64_t first = 0; first < piece.words; first += Chunk)
    seeChunk(line + first, piece.bias ? piece.bias + first : nullptr, piece.words - first < Chunk ? piece.words - first : Chunk, state, *scratch);
  if (threadIdx.x > 0) return;
  const int64_t target = loss.targets[row] - piece.word;
  if (loss.targets[row] >= 0 && target >= 0 && target < piece.words)
    state.target = line[target] + (piece.bias ? piece.bias[target] : 0.0f);
  if (piece.word + piece.words < loss.vocab) {
    piece.states[blockIdx.x] = state;
    return;
  }
  const double normaliser = state.greatest + log(state.exponentials);
  const double smoothed = loss.smoothing == 0 ? 0.0 : loss.smoothing * state.logits / static_cast<double>(loss.vocab);
  const double value = normaliser - (1.0 - loss.smoothing) * state.target - smoothed;
  if (piece.logsumexp) piece.logsumexp[row] = static_cast<float>(normaliser);
  if (piece.losses) piece.losses[row] = ignored(loss, row) ? 0.0f : static_cast<float>(value);
}

// How forward pieces are cut: words in whole chunks.
struct ForwardPieces {
  int64_t rows, words;
  ForwardPieces(int64_t allRows, int64_t vocab) {
    rows = std::min(allRows, pieceRows(vocab));
    words = std::min(paddedWidth(vocab), std::max(Chunk, LogitsMax / rows / Chunk * Chunk));
  }
  size_t logitsBytes() const { return static_cast<size_t>(rows * words) * sizeof(float); }
  size_t bytes(int64_t vocab) const { return logitsBytes() + (words < vocab ? static_cast<size_t>(rows) * sizeof(RowState) : 0); }
};

void linearCrossEntropy(const Call& call) {
  const auto [x, weight, bias, targets, scales] = call.in<5>();
  const auto [losses, logsumexp] = call.out<2>();
  if (!losses && !logsumexp) return;
  const int64_t rows = x[0], dim = x[1], vocab = weight[0];
  const TargetLoss loss = ops::targetLossOf(call, targets, vocab);
  const ForwardPieces pieces(rows, vocab);
  const Planes left = planesOf(call, 0), right = planesOf(call, 1);
  const int planes = planeCountOf(call);
  auto* const logits = reinterpret_cast<float*>(call.workspace);
  auto* const states = reinterpret_cast<RowState*>(call.workspace + pieces.logitsBytes());
  for (int64_t row = 0; row < rows; row += pieces.rows)
    for (int64_t word = 0; word < vocab; word += pieces.words) {
      const int64_t high = std::min(pieces.rows, rows - row), wide = std::min(pieces.words, vocab - word);
      const int64_t stride = paddedWidth(wide);
      multiply(deviceOf(call), Layout::forward, {left.fromRow(row), right.fromRow(word), high, wide, dim, planes},
               {.columns = stride, .y = AnyFloat(logits)});
      launch(deviceOf(call), {static_cast<unsigned>(high), Threads, sizeof(Scratch)}, seeLogits,
             SeenPiece{logits, bias ? bias.f32() + word : nullptr, states, losses.f32(), logsumexp.f32(), row, word, wide, stride}, loss);
    }
}

// dlogits as planes from the logits of a piece: dloss·(softmax − smoothing/vocab − (1 − smoothing)·[word is the target]).
template <int PlaneCount>
struct Dlogits {
  int64_t columns;  // the padded width of the planes
  TargetLoss loss;
  const float *dlosses, *logsumexp, *bias;  // bias: of the piece's words; null: none
  bf16* planes;
  int64_t planeStride, row, word, words;

  template <int N>
  __device__ __forceinline__ void apply(int64_t m, int64_t n, float (&logits)[N]) const {
    const int64_t at = row + m, target = loss.targets[at] - word;
    const bool inside = loss.targets[at] >= 0 && loss.targets[at] < loss.vocab, counts = !ignored(loss, at);
    const float dloss = inside ? dlosses[at] : __int_as_float(0x7fffffff), normaliser = logsumexp[at];
    const float uniform = loss.smoothing / static_cast<float>(loss.vocab), share = dloss * (1.0f - loss.smoothing);
    Vec<bf16, N> out[PlaneCount];
#pragma unroll
    for (int i = 0; i < N; i++) {
      const float shift = bias && n + i < words ? bias[n + i] : 0.0f;
      float gradient = dloss * (expFast(logits[i] + shift - normaliser) - uniform);
      if (n + i == target) gradient -= share;
      bf16 parts[PlaneCount];
      split(counts && n + i < words ? gradient : 0.0f, parts);
#pragma unroll
      for (int p = 0; p < PlaneCount; p++) out[p].at[i] = parts[p];
    }
#pragma unroll
    for (int p = 0; p < PlaneCount; p++) storeWhole(planes + p * planeStride + m * columns + n, out[p]);
  }
};

constexpr int64_t LineRows = 128;

// lines[block][word]: the sum of a word's dlogits over 128 rows; a block has 32 words, warp w rows w, w + 8, …, whose sums are added in
// rising order.
// registers: 40
template <int PlaneCount>
__global__ __launch_bounds__(Threads) void addPlanes(const Planes dlogits, int64_t rows, int64_t words, float* lines) {
  constexpr int Warps = Threads / 32;
  SHARED(float, sums);  // (Warps, 32)
  const int64_t word = int64_t{blockIdx.y} * 32 + laneIndex(), first = int64_t{blockIdx.x} * LineRows;
  const int64_t last = rows < first + LineRows ? rows : first + LineRows;
  float sum = 0;
  for (int64_t row = first + warpIndex(); word < words && row < last; row += Warps)
#pragma unroll
    for (int p = 0; p < PlaneCount; p++) sum += toFloat(dlogits.data[p * dlogits.planeStride + row * dlogits.stride + word]);
  sums[threadIdx.x] = sum;
  __syncthreads();
  if (warpIndex() != 0 || word >= words) return;
  float all = 0;
#pragma unroll
  for (int warp = 0; warp < Warps; warp++) all += sums[warp * 32 + laneIndex()];
  lines[int64_t{blockIdx.x} * words + word] = all;
}

struct AddTo {
  float* sums;
  bool more;
  __device__ void operator()(int64_t word, float value) const { sums[word] = more ? sums[word] + value : value; }
};

// The workspace of the gradient: a piece's planes of dlogits, where dx cannot hold them in f32 from piece to piece, its sums, and
// lines of dbias.
struct GradientPieces {
  int64_t rows, words;
  size_t planeBytes, sumBytes, lineBytes;
  explicit GradientPieces(const Call& call) {
    const Tensor &x = call.inputs[1], &weight = call.inputs[2], &dx = call.outputs[0];
    rows = std::min(x[0], pieceRows(weight[0]));
    words = std::min(weight[0], Chunk);
    planeBytes = cuda::planeBytes(planeCountOf(call), rows, words);
    planeBytes = (planeBytes + 63) / 64 * 64;
    sumBytes = dx.dtype == Dtype::bf16 && words < weight[0] ? static_cast<size_t>(rows * x[1]) * sizeof(float) : 0;
    sumBytes = (sumBytes + 63) / 64 * 64;
    lineBytes = call.outputs[2].shape.rank > 0 ? static_cast<size_t>(ceilDiv(rows, LineRows) * words) * sizeof(float) : 0;
  }
};

template <int PlaneCount>
void addPieces(const Call& call) {
  const auto [dlosses, x, weight, bias, targets, logsumexp] = call.in<6>();
  const auto [dx, dweight, dbias] = call.out<3>();
  const int64_t rows = x[0], dim = x[1], vocab = weight[0];
  const TargetLoss loss = ops::targetLossOf(call, targets, vocab);
  const GradientPieces pieces(call);
  const Planes left = planesOf(call, 1), right = planesOf(call, 2);
  auto* const planes = reinterpret_cast<bf16*>(call.workspace);
  for (int64_t row = 0; row < rows; row += pieces.rows)
    for (int64_t word = 0; word < vocab; word += pieces.words) {
      const int64_t high = std::min(pieces.rows, rows - row), wide = std::min(pieces.words, vocab - word);
      const int64_t width = paddedWidth(wide);
      const Planes dlogits{planes, width, high * width}, a = left.fromRow(row), b = right.fromRow(word);
      const Dlogits<PlaneCount> epilogue{width, loss, dlosses.f32(), logsumexp.f32(), bias ? bias.f32() + word : nullptr, planes, high * width, row, word, wide};
      launchPlanes<PlaneCount, false, false>(deviceOf(call), {a, b, high, wide, dim, PlaneCount}, epilogue);
      if (dbias) {
        auto* const lines = reinterpret_cast<float*>(call.workspace + pieces.planeBytes + pieces.sumBytes);
        const dim3 grid(static_cast<unsigned>(ceilDiv(high, LineRows)), static_cast<unsigned>(ceilDiv(wide, 32)));
        launch(deviceOf(call), {grid, Threads, Threads * sizeof(float)}, addPlanes<PlaneCount>, dlogits, high, wide, lines);
        launchLines(deviceOf(call), lines, grid.x, wide, AddTo{dbias.f32() + word, row > 0});
      }
      if (dx) {
        const AnyFloat out = AnyFloat(dx).from(row * dim);
        const AnyFloat sums = pieces.sumBytes > 0 ? AnyFloat(reinterpret_cast<float*>(call.workspace + pieces.planeBytes)) : out;
        multiply(deviceOf(call), Layout::inputGrad, {dlogits, b, high, dim, wide, PlaneCount},
                 {.columns = dim, .y = word + wide < vocab ? sums : out, .residual = word > 0 ? sums : AnyFloat()});
      }
      if (dweight) {
        const AnyFloat out = AnyFloat(dweight).from(word * dim);
        multiply(deviceOf(call), Layout::weightGrad, {dlogits, a, wide, dim, high, PlaneCount},
                 {.columns = dim, .y = out, .residual = row > 0 ? out : AnyFloat()});
      }
    }
}

void linearCrossEntropyGrad(const Call& call) {
  const auto [dx, dweight, dbias] = call.out<3>();
  if (!dx && !dweight && !dbias) return;
  if (planeCountOf(call) == 1) addPieces<1>(call);
  else addPieces<3>(call);
}

size_t forwardBytes(const Call& call) {
  const int64_t rows = call.inputs[0][0], vocab = call.inputs[1][0];
  return ForwardPieces(rows, vocab).bytes(vocab);
}
size_t gradientBytes(const Call& call) {
  const GradientPieces pieces(call);
  return pieces.planeBytes + pieces.sumBytes + pieces.lineBytes;
}

}  // namespace

KERNEL(linearCrossEntropy, cuda, "x weight bias? targets scales? -> losses logsumexp; ignore smoothing precision", .run = linearCrossEntropy,
       .limit = withCublas<ops::crossEntropyLimit>, .workspaceBytes = forwardBytes,
       .prepare = [](const Call& call, int input) { return input < 2 ? planesFor(call, input) : nullptr; },
       .checkInputs = [](const Call& call) { ops::checkTargets(call, call.inputs[3], call.inputs[1][0]); })
KERNEL(linearCrossEntropyGrad, cuda, "dlosses x weight bias? targets logsumexp -> dx dweight dbias; ignore smoothing precision",
       .run = linearCrossEntropyGrad, .limit = withCublas<ops::crossEntropyGradLimit>, .workspaceBytes = gradientBytes,
       .prepare = [](const Call& call, int input) { return input == 1 || input == 2 ? planesFor(call, input) : nullptr; },
       .checkInputs = [](const Call& call) { ops::checkTargets(call, call.inputs[4], call.inputs[2][0]); })

}  // namespace selscan::cuda
