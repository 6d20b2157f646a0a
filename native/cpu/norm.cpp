// RMS and layer normalisation, forward and backward. See lib/ops/norm.ts for the equations.
//
// Forward: blocks of rows over the threads, two passes over a row that stays in L1, four where it is centred. Backward: blocks of
// 32 rows, each with its own line of partial sums for dweight and dbias; the lines are then added in rising order. Statistics are
// f32, four vectors of partial sums wide. Bound by memory.
//
// A centred row's mean m is first taken as it comes: with n elements of size |m| its sum has an error of some 2⁻²³·|m| and more,
// which would shift every result. But differences x − m are exact where x is near m (Sterbenz: within a factor of 2), and the mean
// c of these small numbers is what m lacks: x − mean = (x − m) − c, of which the second difference alone is rounded. The
// gradient, which is given one f32 for the mean, finds its own c again.
#include "core/kernel.h"
#include "cpu/threads.h"
#include "ops/norm.h"

#define EACH_ISA "cpu/norm.cpp"
#include "cpu/each_isa.h"

#ifdef ISA
#include "cpu/elements.h"

namespace selscan::ISA {
namespace {

constexpr int64_t RowBlock = 32;      // of the gradient: its partial sums are 1/32 of the activations
constexpr int64_t TaskElements = 8192;  // of the forward pass: a task takes microseconds

// x with zeros in the lanes from n on.
inline F32 firstLanesOf(F32 x, int n) {
  if (n == Lanes) return x;
  alignas(64) float lanes[Lanes];
  store(lanes, x);
  return load(lanes, n);
}

// A part of the weight; of none, ones.
inline F32 gainAt(const float* weight, int64_t i, int n) { return weight ? load(weight + i, n) : set(1.0f); }

struct Norm {
  const float *x, *weight, *bias, *residual;  // null: absent
  float *y, *sum, *mean, *rstd;               // null: nobody reads it
  int64_t dim;
  float eps;
};

template <bool Centred>
void normaliseRow(const Norm& norm, int64_t row) {
  const int64_t at = row * norm.dim;
  const float size = static_cast<float>(norm.dim);
  const auto input = [&norm, at](int64_t i, int n) {
    const F32 value = load(norm.x + at + i, n);
    return norm.residual ? value + load(norm.residual + at + i, n) : value;
  };
  float total = sumOver(norm.dim, [&](int64_t i, int n) {
    const F32 value = input(i, n);
    if (norm.sum) store(norm.sum + at + i, value, n);
    return Centred ? value : value * value;
  });
  F32 mean = set(0.0f), rest = set(0.0f);
  const auto centred = [&](int64_t i, int n) { return Centred ? input(i, n) - mean - rest : input(i, n); };
  if constexpr (Centred) {
    const float first = total / size;
    mean = set(first);
    const float lacking = sumOver(norm.dim, [&](int64_t i, int n) { return firstLanesOf(centred(i, n), n); }) / size;
    rest = set(lacking);
    if (norm.mean) norm.mean[row] = first + lacking;
    total = sumOver(norm.dim, [&](int64_t i, int n) {
      const F32 value = firstLanesOf(centred(i, n), n);
      return value * value;
    });
  }
  const float scale = 1.0f / __builtin_sqrtf(total / size + norm.eps);
  if (norm.rstd) norm.rstd[row] = scale;
  if (!norm.y) return;
  overVectors(0, norm.dim, [&](int64_t i, int n) {
    const F32 normal = centred(i, n) * set(scale), gain = gainAt(norm.weight, i, n);
    store(norm.y + at + i, norm.bias ? fma(normal, gain, load(norm.bias + i, n)) : normal * gain, n);
  });
}

template <bool Centred>
void normalise(const Call& call) {
  const auto [x, weight, bias, residual] = call.in<4>();
  const int64_t rows = x[0], dim = x[1], block = TaskElements / dim > 0 ? TaskElements / dim : 1;
  const Norm norm{x.f32(), weight.f32(), bias.f32(), residual.f32(), call.outputs[0].f32(), call.outputs[1].f32(),
                  Centred ? call.outputs[2].f32() : nullptr, call.outputs[Centred ? 3 : 2].f32(), dim,
                  static_cast<float>(call.attributes.number("eps"))};
  cpu::parallel((rows + block - 1) / block, [&](int64_t task) {
    const int64_t end = (task + 1) * block < rows ? (task + 1) * block : rows;
    for (int64_t row = task * block; row < end; row++) normaliseRow<Centred>(norm, row);
  });
}

struct NormGrad {
  const float *dy, *dsum, *x, *weight, *mean, *rstd;  // dy, dsum, mean null: zeros; weight null: ones
  float *dx;                                          // null: nobody reads it
  int64_t dim;
};

// dx of a row, and its part of dweight (gains) and dbias (shifts).
template <bool Centred>
void gradRow(const NormGrad& norm, int64_t row, float* gains, float* shifts) {
  const int64_t at = row * norm.dim;
  const float size = static_cast<float>(norm.dim);
  const F32 scale = set(norm.rstd[row]), mean = set(Centred ? norm.mean[row] : 0.0f);
  F32 rest = set(0.0f), level = set(0.0f);  // level: mean(g)
  const auto given = [&](int64_t i, int n) { return norm.dy ? load(norm.dy + at + i, n) : set(0.0f); };
  const auto through = [&](int64_t i, int n) { return given(i, n) * gainAt(norm.weight, i, n); };
  const auto centred = [&](int64_t i, int n) {
    const F32 value = load(norm.x + at + i, n);
    return Centred ? value - mean - rest : value;
  };
  if constexpr (Centred) {
    rest = set(sumOver(norm.dim, [&](int64_t i, int n) { return firstLanesOf(centred(i, n), n); }) / size);
    level = set(sumOver(norm.dim, through) / size);
  }
  const F32 slope = set(sumOver(norm.dim, [&](int64_t i, int n) { return through(i, n) * (centred(i, n) * scale); }) / size);
  overVectors(0, norm.dim, [&](int64_t i, int n) {
    const F32 d = given(i, n), normal = centred(i, n) * scale;
    store(gains + i, fma(d, normal, load(gains + i, n)), n);
    store(shifts + i, load(shifts + i, n) + d, n);
    if (!norm.dx) return;
    const F32 gradient = d * gainAt(norm.weight, i, n), inside = Centred ? gradient - level : gradient;
    const F32 dx = scale * (inside - normal * slope);
    store(norm.dx + at + i, norm.dsum ? dx + load(norm.dsum + at + i, n) : dx, n);
  });
}

template <bool Centred>
void normaliseGrad(const Call& call) {
  const auto [dx, dweight, dbias] = call.out<3>();
  const Tensor &x = call.inputs[2], &rstd = call.inputs[Centred ? 5 : 4];
  const int64_t rows = x[0], dim = x[1], blocks = (rows + RowBlock - 1) / RowBlock;
  const NormGrad norm{call.inputs[0].f32(), call.inputs[1].f32(), x.f32(), call.inputs[3].f32(),
                      Centred ? call.inputs[4].f32() : nullptr, rstd.f32(), dx.f32(), dim};
  float *gainPartial = reinterpret_cast<float*>(call.workspace), *shiftPartial = gainPartial + blocks * dim;
  cpu::parallel(blocks, [&](int64_t block) {
    float *gains = gainPartial + block * dim, *shifts = shiftPartial + block * dim;
    for (int64_t i = 0; i < dim; i++) gains[i] = shifts[i] = 0;
    const int64_t end = (block + 1) * RowBlock < rows ? (block + 1) * RowBlock : rows;
    for (int64_t row = block * RowBlock; row < end; row++) gradRow<Centred>(norm, row, gains, shifts);
  });
  addLines(gainPartial, blocks, dim, dweight.f32());
  addLines(shiftPartial, blocks, dim, dbias.f32());
}

}  // namespace

void rmsNorm(const Call& call) { normalise<false>(call); }
void rmsNormGrad(const Call& call) { normaliseGrad<false>(call); }
void layerNorm(const Call& call) { normalise<true>(call); }
void layerNormGrad(const Call& call) { normaliseGrad<true>(call); }

}  // namespace selscan::ISA
#else
namespace selscan::cpu {
static size_t partialBytes(const Call& call) {
  const Tensor& x = call.inputs[2];
  return static_cast<size_t>((x[0] + 31) / 32 * x[1]) * 2 * sizeof(float);
}
KERNEL(rmsNorm, cpu, "x weight? bias? residual? -> y sum rstd; eps dtype", .run = DISPATCH(rmsNorm), .limit = ops::rmsNormLimit)
KERNEL(rmsNormGrad, cpu, "dy? dsum? x weight? rstd -> dx dweight dbias", .run = DISPATCH(rmsNormGrad), .limit = ops::rmsNormGradLimit,
       .workspaceBytes = partialBytes)
KERNEL(layerNorm, cpu, "x weight bias? residual? -> y sum mean rstd; eps dtype", .run = DISPATCH(layerNorm), .limit = ops::layerNormLimit)
KERNEL(layerNormGrad, cpu, "dy? dsum? x weight mean rstd -> dx dweight dbias", .run = DISPATCH(layerNormGrad),
       .limit = ops::layerNormGradLimit, .workspaceBytes = partialBytes)
}  // namespace selscan::cpu
#endif
