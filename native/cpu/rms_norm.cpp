// RMS normalisation, forward and backward. See lib/ops/rms-norm.ts for the equations.
//
// Forward: blocks of rows over the threads, two passes over a row that stays in L1. Backward: blocks of 32 rows, each with
// its own line of partial sums for dweight and dbias; the lines are then added in rising order. Statistics are f32, four
// vectors of partial sums wide (without them the additions' latency, not memory, bounds a row). Bound by memory.
#include "core/dims.h"
#include "core/kernel.h"
#include "cpu/threads.h"

#define EACH_ISA "cpu/rms_norm.cpp"
#include "cpu/each_isa.h"

#ifdef ISA
namespace selscan::ISA {
namespace {

constexpr int64_t RowBlock = 32;      // of the gradient: its partial sums are 1/32 of the activations
constexpr int64_t TaskElements = 8192;  // of the forward pass: a task takes microseconds

// Σ term(i, n) over [0, dim) in one fixed order; term gives the products of elements [i, i + n), n ≤ Lanes.
template <class Term>
inline float sumOver(int64_t dim, Term term) {
  F32 totals[4] = {set(0.0f), set(0.0f), set(0.0f), set(0.0f)};
  int64_t i = 0;
  for (; i + 4 * Lanes <= dim; i += 4 * Lanes)
    for (int k = 0; k < 4; k++) totals[k] = totals[k] + term(i + k * Lanes, Lanes);
  for (; i + Lanes <= dim; i += Lanes) totals[0] = totals[0] + term(i, Lanes);
  if (i < dim) totals[1] = totals[1] + term(i, static_cast<int>(dim - i));
  return sum((totals[0] + totals[1]) + (totals[2] + totals[3]));
}

// body(i, n) over [0, dim), n ≤ Lanes.
template <class Body>
inline void overRow(int64_t dim, Body body) {
  int64_t i = 0;
  for (; i + Lanes <= dim; i += Lanes) body(i, Lanes);
  if (i < dim) body(i, static_cast<int>(dim - i));
}

}  // namespace

void rmsNormForward(const Call& call) {
  const auto [x, weight, bias, residual] = call.in<4>();
  const auto [y, total, rstd] = call.out<3>();
  const int64_t rows = x[0], dim = x[1], block = TaskElements / dim > 0 ? TaskElements / dim : 1;
  const float eps = static_cast<float>(call.attributes.number("eps"));
  const float *from = x.f32(), *gain = weight.f32(), *shift = bias.f32(), *stream = residual.f32();
  float *to = y.f32(), *sums = total.f32(), *inverse = rstd.f32();
  cpu::parallel((rows + block - 1) / block, [=](int64_t task) {
    const int64_t end = (task + 1) * block < rows ? (task + 1) * block : rows;
    for (int64_t row = task * block; row < end; row++) {
      const int64_t at = row * dim;
      const auto input = [=](int64_t i, int n) {
        const F32 value = load(from + at + i, n);
        return stream ? value + load(stream + at + i, n) : value;
      };
      const float squares = sumOver(dim, [=](int64_t i, int n) {
        const F32 value = input(i, n);
        if (sums) store(sums + at + i, value, n);
        return value * value;
      });
      const float scale = 1.0f / __builtin_sqrtf(squares / static_cast<float>(dim) + eps);
      if (inverse) inverse[row] = scale;
      if (!to) continue;
      overRow(dim, [=](int64_t i, int n) {
        const F32 normal = input(i, n) * set(scale), g = load(gain + i, n);
        store(to + at + i, shift ? fma(normal, g, load(shift + i, n)) : normal * g, n);
      });
    }
  });
}

// dx = rstd·(dy·w − x̂·mean(dy·w·x̂)) + dsum with x̂ = x·rstd;  dweight = Σ dy·x̂;  dbias = Σ dy.
void rmsNormBackward(const Call& call) {
  const auto [dy, dsum, x, weight, rstd] = call.in<5>();
  const auto [dx, dweight, dbias] = call.out<3>();
  const int64_t rows = x[0], dim = x[1], blocks = (rows + RowBlock - 1) / RowBlock;
  const float *gradient = dy.f32(), *stream = dsum.f32(), *from = x.f32(), *gain = weight.f32(), *inverse = rstd.f32();
  float *to = dx.f32(), *gainPartial = reinterpret_cast<float*>(call.workspace), *shiftPartial = gainPartial + blocks * dim;
  cpu::parallel(blocks, [=](int64_t block) {
    float *gains = gainPartial + block * dim, *shifts = shiftPartial + block * dim;
    const int64_t end = (block + 1) * RowBlock < rows ? (block + 1) * RowBlock : rows;
    for (int64_t i = 0; i < dim; i++) gains[i] = shifts[i] = 0;
    for (int64_t row = block * RowBlock; row < end; row++) {
      const int64_t at = row * dim;
      const F32 scale = set(inverse[row]);
      const auto given = [=](int64_t i, int n) { return gradient ? load(gradient + at + i, n) : set(0.0f); };
      const float dot = sumOver(dim, [=](int64_t i, int n) {
        return given(i, n) * load(gain + i, n) * (load(from + at + i, n) * scale);
      });
      const F32 mean = set(dot / static_cast<float>(dim));
      overRow(dim, [=](int64_t i, int n) {
        const F32 d = given(i, n), normal = load(from + at + i, n) * scale;
        store(gains + i, fma(d, normal, load(gains + i, n)), n);
        store(shifts + i, load(shifts + i, n) + d, n);
        if (!to) return;
        const F32 through = scale * (d * load(gain + i, n) - normal * mean);
        store(to + at + i, stream ? through + load(stream + at + i, n) : through, n);
      });
    }
  });

  // The blocks' sums.
  float *gains = dweight.f32(), *shifts = dbias.f32();
  cpu::parallel((dim + 255) / 256, [=](int64_t task) {
    const int64_t end = (task + 1) * 256 < dim ? (task + 1) * 256 : dim;
    for (int64_t i = task * 256; i < end; i++) {
      double gainSum = 0, shiftSum = 0;
      for (int64_t block = 0; block < blocks; block++) {
        gainSum += gainPartial[block * dim + i];
        shiftSum += shiftPartial[block * dim + i];
      }
      if (gains) gains[i] = static_cast<float>(gainSum);
      if (shifts) shifts[i] = static_cast<float>(shiftSum);
    }
  });
}

}  // namespace selscan::ISA
#else
namespace selscan::cpu {
static size_t partialBytes(const Call& call) {
  const Tensor& x = call.inputs[2];
  return static_cast<size_t>((x[0] + 31) / 32 * x[1]) * 2 * sizeof(float);
}
KERNEL(rmsNorm, cpu, "x weight bias? residual? -> y sum rstd; eps dtype", .run = DISPATCH(rmsNormForward),
       .limit = [](const Call& call) { return dimsMismatch(call, {"rows dim", "dim", "? dim", "? rows dim"}, {"rows dim", "rows dim", "rows"}); })
KERNEL(rmsNormGrad, cpu, "dy? dsum? x weight rstd -> dx dweight dbias", .run = DISPATCH(rmsNormBackward),
       .limit = [](const Call& call) { return dimsMismatch(call, {"? rows dim", "? rows dim", "rows dim", "dim", "rows"}, {"rows dim", "dim", "dim"}); },
       .workspaceBytes = partialBytes)
}  // namespace selscan::cpu
#endif
