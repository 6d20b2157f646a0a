// Gated RMS normalisation of heads, forward and backward. See lib/ops/head-norm.ts for the equations.
//
// Blocks of rows over the threads, two passes over a head that stays in L1. Backward: blocks of 32 rows, each with its own line of
// partial sums for dweight; the lines are then added in rising order. Bound by memory: 3 elements moved each forward, 5 backward.
#include <algorithm>

#include "cpu/threads.h"
#include "ops/head_norm.h"

#define EACH_ISA "cpu/head_norm.cpp"
#include "cpu/each_isa.h"

#ifdef ISA
#include "cpu/elements.h"

namespace selscan::ISA {
namespace {

constexpr int64_t RowBlock = 32;        // of the gradient: its partial sums are 1/(32·heads) of the activations
constexpr int64_t TaskElements = 8192;  // of the forward pass: a task takes microseconds

}  // namespace

void gatedHeadNorm(const Call& call) {
  const auto [x, gate, weight] = call.in<3>();
  const auto [y, rstd] = call.out<2>();
  const int64_t rows = x[0], value = weight[0], heads = x[1] / value, block = std::max<int64_t>(1, TaskElements / x[1]);
  const float eps = static_cast<float>(call.attributes.number("eps"));
  const float *from = x.f32(), *gates = gate.f32(), *gain = weight.f32();
  float *to = y.f32(), *inverse = rstd.f32();
  cpu::parallel((rows + block - 1) / block, [=](int64_t task) {
    for (int64_t one = task * block * heads; one < std::min(rows, (task + 1) * block) * heads; one++) {
      const int64_t at = one * value;
      const float squares = sumOver(value, [=](int64_t i, int n) {
        const F32 element = load(from + at + i, n);
        return element * element;
      });
      const float scale = 1.0f / __builtin_sqrtf(squares / static_cast<float>(value) + eps);
      if (inverse) inverse[one] = scale;
      if (!to) continue;
      overVectors(0, value, [=](int64_t i, int n) {
        store(to + at + i, load(from + at + i, n) * set(scale) * load(gain + i, n) * silu(load(gates + at + i, n)), n);
      });
    }
  });
}

void gatedHeadNormGrad(const Call& call) {
  const auto [dy, x, gate, weight, rstd] = call.in<5>();
  const auto [dx, dgate, dweight] = call.out<3>();
  const int64_t rows = x[0], value = weight[0], heads = x[1] / value, blocks = (rows + RowBlock - 1) / RowBlock;
  const float *gradient = dy.f32(), *from = x.f32(), *gates = gate.f32(), *gain = weight.f32(), *inverse = rstd.f32();
  float *to = dx.f32(), *toGate = dgate.f32(), *partial = reinterpret_cast<float*>(call.workspace);
  cpu::parallel(blocks, [=](int64_t block) {
    float* gains = partial + block * value;
    for (int64_t i = 0; i < value; i++) gains[i] = 0;
    for (int64_t one = block * RowBlock * heads; one < std::min(rows, (block + 1) * RowBlock) * heads; one++) {
      const int64_t at = one * value;
      const F32 scale = set(inverse[one]);
      const auto through = [=](int64_t i, int n) { return load(gradient + at + i, n) * silu(load(gates + at + i, n)); };
      const float dot = sumOver(value, [=](int64_t i, int n) {
        return through(i, n) * load(gain + i, n) * (load(from + at + i, n) * scale);
      });
      const F32 mean = set(dot / static_cast<float>(value));
      overVectors(0, value, [=](int64_t i, int n) {
        const F32 normal = load(from + at + i, n) * scale, d = through(i, n), g = load(gain + i, n);
        const F32 slope = load(gradient + at + i, n) * normal * g * siluGrad(load(gates + at + i, n));
        store(gains + i, fma(d, normal, load(gains + i, n)), n);
        if (to) store(to + at + i, scale * (d * g - normal * mean), n);
        if (toGate) store(toGate + at + i, slope, n);
      });
    }
  });
  addLines(partial, blocks, value, dweight.f32());
}

}  // namespace selscan::ISA
#else
namespace selscan::cpu {

KERNEL(gatedHeadNorm, cpu, "x gate weight -> y rstd; eps", .run = DISPATCH(gatedHeadNorm), .limit = ops::headNormLimit)
KERNEL(gatedHeadNormGrad, cpu, "dy x gate weight rstd -> dx dgate dweight", .run = DISPATCH(gatedHeadNormGrad),
       .limit = ops::headNormGradLimit,
       .workspaceBytes =
           [](const Call& call) { return static_cast<size_t>((call.inputs[1][0] + 31) / 32 * call.inputs[3][0]) * sizeof(float); },
       // An element of x and of gate is read for the last time before its gradient is written.
       .inPlace = {{0, 1}, {1, 2}})

}  // namespace selscan::cpu
#endif
