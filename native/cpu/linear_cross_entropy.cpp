// Head and loss in one: cross entropy of x·Wᵀ + bias. See lib/ops/linear-cross-entropy.ts for the equations.
//
// Forward: a task takes 96 rows through the vocabulary in chunks of 256 logits that stay in L2, keeping for each row the
// greatest logit, the sum of exponentials against it, the sum of logits and the target's logit. Gradient: logits are
// computed again in pieces of 2048 rows × 1024 words (8 MB), turned into dlogits where they lie, and multiplied
// with the weight and with x while they are in L3; dx continues over the chunks, dweight and dbias over the rows in order, so every
// element is one sum in one order, dbias in f64. Bound by multiply-adds: one product forward, three backward. One core of an AMD EPYC
// (Zen 5), AVX-512, 2026-11-22, 16384×384×256 as well as 4096×512×50280: 0.7 of the f32 peak, bf16 1.6 to 1.9 times that.
#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>

#include "core/kernel.h"
#include "cpu/gemm_int8.h"
#include "cpu/threads.h"
#include "ops/linear_cross_entropy.h"

#ifndef ISA  // once, not for each instruction set
namespace selscan::cpu {
namespace {

constexpr int64_t Chunk = 256;                                // logits of a row at a time, forward
constexpr int64_t ForwardSlots = 64;                          // tasks of the forward pass, each with a chunk of its own
constexpr int64_t GradientRows = 2048, GradientWords = 1024;  // multiples of 32: whole steps of AMX tiles in every piece

// Bytes of the dlogits of the largest piece.
size_t pieceBytes(int64_t rows, int64_t vocab) {
  const int64_t logits = (rows < GradientRows ? rows : GradientRows) * (vocab < GradientWords ? vocab : GradientWords);
  return static_cast<size_t>(logits + 15) / 16 * 64;
}

// The workspace of the gradient: dlogits of a piece, then dbias while it is summed, then what the products need.
size_t sumsBytes(const Call& call) {
  return call.outputs[2].shape.rank > 0 ? static_cast<size_t>(call.inputs[2][0] + 7) / 8 * 64 : 0;
}
double* biasSums(const Call& call) { return reinterpret_cast<double*>(call.workspace + pieceBytes(call.inputs[1][0], call.inputs[2][0])); }

// What one row has seen of its logits.
struct RowState {
  double greatest, exponentials, logits, target;  // exponentials: Σ e^(logit − greatest)
};
struct Slot {
  alignas(64) float logits[RowBlock][Chunk];
  RowState states[RowBlock];
};
// The workspace of the forward pass: a slot for each of its tasks, then the rows of x in 8 bits, where the weight is of those.
size_t slotsBytes(int64_t rows) {
  const int64_t blocks = (rows + RowBlock - 1) / RowBlock;
  return sizeof(Slot) * static_cast<size_t>(blocks < ForwardSlots ? blocks : ForwardSlots);
}

struct Loss : ops::TargetLoss {
  bool ignored(int64_t row) const { return targets[row] == ignore; }
  bool inside(int64_t row) const { return targets[row] >= 0 && targets[row] < vocab; }
};

}  // namespace
}  // namespace selscan::cpu
#endif

#define EACH_ISA "cpu/linear_cross_entropy.cpp"
#include "cpu/each_isa.h"

#ifdef ISA
namespace selscan::ISA {
namespace {

using cpu::Chunk, cpu::GradientRows, cpu::GradientWords, cpu::Loss, cpu::RowState, cpu::Slot;

// e^x for x ≤ 0; 0 far below, NaN for NaN.
inline F32 decay(F32 x) { return exp(max(set(-100.0f), x)); }

Loss lossOf(const Call& call, const Tensor& targets, int64_t vocab) { return {ops::targetLossOf(call, targets, vocab)}; }

// Adds n logits, those of words first … first + n, to what the row has seen. There is room for a whole chunk at logits.
void see(RowState& state, float* logits, int64_t n, int64_t targetAt) {
  const int64_t padded = (n + Lanes - 1) / Lanes * Lanes;
  if (targetAt >= 0 && targetAt < n) state.target = logits[targetAt];
  for (int64_t i = n; i < padded; i++) logits[i] = -FLT_MAX;
  F32 top = set(-FLT_MAX), total = set(0.0f), sums = set(0.0f);
  for (int64_t i = 0; i < padded; i += Lanes) {
    top = max(top, load(logits + i));
    total = total + load(logits + i, n - i < Lanes ? static_cast<int>(n - i) : Lanes);
  }
  const float local = maximum(top);
  const float greatest = local > state.greatest ? local : static_cast<float>(state.greatest);
  for (int64_t i = 0; i < padded; i += Lanes) sums = sums + decay(load(logits + i) - set(greatest));
  state.exponentials = state.exponentials * std::exp(state.greatest - greatest) + sum(sums);
  state.greatest = greatest;
  state.logits += sum(total);
}

void addBias(const float* bias, int64_t n, float* logits) {
  for (int64_t i = 0; i < n; i += Lanes) {
    const int count = n - i < Lanes ? static_cast<int>(n - i) : Lanes;
    store(logits + i, load(logits + i, count) + load(bias + i, count), count);
  }
}

// Rows [row, rowEnd) through the whole vocabulary. bias: null where there is none.
void seeRows(const cpu::Product& product, const float* bias, const Loss& loss, const cpu::Block& rows, Slot& slot) {
  const int64_t count = rows.rowEnd - rows.row, panels = product.b.count();
  for (int64_t r = 0; r < count; r++) slot.states[r] = {-FLT_MAX, 0, 0, NAN};
  const auto run = cpu::blockProduct(product.b.precision);
  const uint64_t id = cpu::newProduct();  // all chunks have the same rows
  constexpr int64_t Wide = Chunk / cpu::PanelWidth;
  for (int64_t panel = 0; panel < panels; panel += Wide) {
    const int64_t first = panel * cpu::PanelWidth, n = loss.vocab - first < Chunk ? loss.vocab - first : Chunk;
    cpu::Product chunk = product;
    chunk.a.data += rows.row * product.a.rowStride;
    chunk.roundedRow = rows.row;
    chunk.b = product.b.from(panel, n);
    chunk.c = slot.logits[0];
    chunk.cStride = Chunk;
    chunk.id = id;
    run(chunk, {0, count, 0, chunk.b.count()});
    for (int64_t r = 0; r < count; r++) {
      if (bias) addBias(bias + first, n, slot.logits[r]);
      see(slot.states[r], slot.logits[r], n, loss.targets[rows.row + r] - first);
    }
  }
}

// dlogits from the logits of the block, in place: dloss·(softmax − smoothing/vocab − (1 − smoothing)·[word is the target]).
// The block's rows and columns count from `row` and `word`.
struct Gradient {
  const float *dlosses, *logsumexp, *bias;  // bias: of the block's first word, or null
  float* logits;
  int64_t row, word, words;
  void apply(const Loss& loss, const cpu::Block& block) const {
    const int64_t begin = block.panel * cpu::PanelWidth;
    const int64_t end = words < block.panelEnd * cpu::PanelWidth ? words : block.panelEnd * cpu::PanelWidth;
    const F32 uniform = set(loss.smoothing / static_cast<float>(loss.vocab));
    for (int64_t r = block.row; r < block.rowEnd; r++) {
      float* line = logits + r * words;
      if (loss.ignored(row + r)) {
        std::memset(line + begin, 0, sizeof(float) * (end - begin));
        continue;
      }
      const float dloss = loss.inside(row + r) ? dlosses[row + r] : NAN;
      const F32 scale = set(dloss), normaliser = set(logsumexp[row + r]);
      for (int64_t i = begin; i < end; i += Lanes) {
        const int n = end - i < Lanes ? static_cast<int>(end - i) : Lanes;
        const F32 logit = bias ? load(line + i, n) + load(bias + i, n) : load(line + i, n);
        store(line + i, scale * (decay(logit - normaliser) - uniform), n);
      }
      const int64_t target = loss.targets[row + r] - word;
      if (target >= begin && target < end) line[target] -= dloss * (1.0f - loss.smoothing);
    }
  }
};

// sums[word] (+)= Σ of the word's dlogits over the rows; rounded first where the products read them so. Sums are f64: a column of
// 65536 rows would lose some 10 bits of an f32, and these additions are few beside the products.
void addRows(const float* dlogits, int64_t rows, int64_t words, bool more, bool rounded, double* sums) {
  constexpr int64_t Columns = 64;
  cpu::parallel((words + Columns - 1) / Columns, [=](int64_t task) {
    const int64_t begin = task * Columns, count = words - begin < Columns ? words - begin : Columns;
    double totals[Columns] = {};
    if (more) std::memcpy(totals, sums + begin, sizeof(double) * static_cast<size_t>(count));
    alignas(64) float line[Columns] = {};
    for (int64_t r = 0; r < rows; r++) {
      for (int64_t i = 0; i < count; i += Lanes) {
        const F32 dlogit = load(dlogits + r * words + begin + i, count - i < Lanes ? static_cast<int>(count - i) : Lanes);
        store(line + i, rounded ? roundedToBf16(dlogit) : dlogit);
      }
      for (int64_t i = 0; i < Columns; i++) totals[i] += static_cast<double>(line[i]);
    }
    std::memcpy(sums + begin, totals, sizeof(double) * static_cast<size_t>(count));
  });
}

// One piece: rows × words of dlogits, and what they add to dx, dweight and dbias.
struct Piece {
  int64_t row, rows, word, words;
};
void addPiece(const Call& call, const Loss& loss, const Piece& piece) {
  const auto [dlosses, x, weight, bias, targets, logsumexp] = call.in<6>();
  const auto [dx, dweight, dbias] = call.out<3>();
  const cpu::Precision precision = cpu::productsOf(call.attributes, weight.dtype);
  const int64_t dim = x[1], elementBytes = static_cast<int64_t>(sizeBytes(weight.dtype));
  const float* rows = x.f32() + piece.row * dim;
  float* dlogits = reinterpret_cast<float*>(call.workspace);
  std::byte* room = call.workspace + cpu::pieceBytes(x[0], weight[0]) + cpu::sumsBytes(call);
  cpu::Panels panels{precision, dim, piece.words, reinterpret_cast<const uint32_t*>(call.prepared[2])};
  panels.words += piece.word / cpu::PanelWidth * panels.panelWords();
  const Gradient gradient{dlosses.f32(), logsumexp.f32(), bias ? bias.f32() + piece.word : nullptr, dlogits, piece.row, piece.word, piece.words};
  cpu::multiply({{rows, dim, 1}, panels, dlogits, piece.words}, piece.rows,
                [&](const cpu::Block& block) { gradient.apply(loss, block); });
  if (dbias)
    addRows(dlogits, piece.rows, piece.words, piece.row > 0, precision == cpu::Precision::bf16, cpu::biasSums(call) + piece.word);
  if (dx) {
    float* c = dx.f32() + piece.row * dim;
    const cpu::Product product{{dlogits, piece.words, 1}, {precision, piece.words, dim}, c, dim, piece.word > 0};
    const cpu::Right words{weight.data + piece.word * dim * elementBytes, weight.dtype, dim, 1};
    cpu::multiplySlabs(product, words, piece.rows, room);
  }
  if (dweight) {
    float* c = dweight.f32() + piece.word * dim;
    const cpu::Product product{{dlogits, 1, piece.words}, {cpu::productsOf(call.attributes, Dtype::f32), piece.rows, dim}, c, dim, piece.row > 0};
    cpu::multiplySlabs(product, {reinterpret_cast<const std::byte*>(rows), Dtype::f32, dim, 1}, piece.words, room);
  }
}

}  // namespace

void linearCrossEntropy(const Call& call) {
  const auto [x, weight, bias, targets, scales] = call.in<5>();
  const auto [losses, logsumexp] = call.out<2>();
  if (!losses && !logsumexp) return;
  const int64_t rows = x[0], dim = x[1], vocab = weight[0];
  const Loss loss = lossOf(call, targets, vocab);
  cpu::Product product{{x.f32(), dim, 1}, cpu::weightPanels(call, 1, 4, cpu::productsOf(call.attributes, weight.dtype)), nullptr, Chunk};
  cpu::roundAhead(product, rows, call.workspace + cpu::slotsBytes(rows));
  const int64_t blocks = (rows + cpu::RowBlock - 1) / cpu::RowBlock;
  const int64_t slots = blocks < cpu::ForwardSlots ? blocks : cpu::ForwardSlots;
  cpu::parallel(slots, [&, losses = losses, logsumexp = logsumexp, shift = bias.f32()](int64_t task) {
    Slot& slot = reinterpret_cast<Slot*>(call.workspace)[task];
    for (int64_t block = task; block < blocks; block += slots) {
      const int64_t row = block * cpu::RowBlock, end = row + cpu::RowBlock < rows ? row + cpu::RowBlock : rows;
      seeRows(product, shift, loss, {row, end, 0, 0}, slot);
      for (int64_t r = row; r < end; r++) {
        const RowState& state = slot.states[r - row];
        const double normaliser = state.greatest + std::log(state.exponentials);
        if (logsumexp) logsumexp.f32()[r] = static_cast<float>(normaliser);
        const double smoothed = loss.smoothing == 0 ? 0.0 : loss.smoothing * state.logits / static_cast<double>(vocab);
        const double value = normaliser - (1.0 - loss.smoothing) * state.target - smoothed;
        if (losses) losses.f32()[r] = loss.ignored(r) ? 0.0f : static_cast<float>(value);
      }
    }
  });
}

void linearCrossEntropyGrad(const Call& call) {
  const auto [dlosses, x, weight, bias, targets, logsumexp] = call.in<6>();
  const auto [dx, dweight, dbias] = call.out<3>();
  if (!dx && !dweight && !dbias) return;
  const int64_t rows = x[0], vocab = weight[0];
  const Loss loss = lossOf(call, targets, vocab);
  for (int64_t row = 0; row < rows; row += GradientRows)
    for (int64_t word = 0; word < vocab; word += GradientWords)
      addPiece(call, loss, {row, rows - row < GradientRows ? rows - row : GradientRows, word,
                            vocab - word < GradientWords ? vocab - word : GradientWords});
  const double* sums = cpu::biasSums(call);
  if (dbias) std::transform(sums, sums + vocab, dbias.f32(), [](double sum) { return static_cast<float>(sum); });
}

}  // namespace selscan::ISA
#else
namespace selscan::cpu {
namespace {

size_t forwardBytes(const Call& call) {
  const auto &x = call.inputs[0], &weight = call.inputs[1];
  return slotsBytes(x[0]) + roundedBytes(weight, x[0]);
}

size_t gradientBytes(const Call& call) {
  const auto &x = call.inputs[1], &weight = call.inputs[2];
  const int64_t rows = x[0] < GradientRows ? x[0] : GradientRows, words = weight[0] < GradientWords ? weight[0] : GradientWords;
  const size_t forRows = slabBytes(productsOf(call.attributes, weight.dtype), rows, words, x[1]);
  const size_t forWords = slabBytes(productsOf(call.attributes, Dtype::f32), words, rows, x[1]);
  return pieceBytes(x[0], weight[0]) + sumsBytes(call) + (forRows > forWords ? forRows : forWords);
}

}  // namespace

KERNEL(linearCrossEntropy, cpu, "x weight bias? targets scales? -> losses logsumexp; ignore smoothing precision",
       .run = DISPATCH(linearCrossEntropy), .limit = ops::crossEntropyLimit, .workspaceBytes = forwardBytes,
       .prepare = [](const Call& call, int input) { return weightForm(call, input, 1, 4, productsOf(call.attributes, call.inputs[1].dtype)); },
       .checkInputs = [](const Call& call) { ops::checkTargets(call, call.inputs[3], call.inputs[1][0]); })
KERNEL(linearCrossEntropyGrad, cpu, "dlosses x weight bias? targets logsumexp -> dx dweight dbias; ignore smoothing precision",
       .run = DISPATCH(linearCrossEntropyGrad), .limit = ops::crossEntropyGradLimit, .workspaceBytes = gradientBytes,
       .prepare = [](const Call& call, int input) {
         return input == 2 ? forwardPanels(productsOf(call.attributes, call.inputs[2].dtype)) : nullptr;
       },
       .readsPlain = true,
       .checkInputs = [](const Call& call) { ops::checkTargets(call, call.inputs[4], call.inputs[2][0]); })

}  // namespace selscan::cpu
#endif
