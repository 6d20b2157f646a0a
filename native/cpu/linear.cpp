// Linear layers: y = act(x·Wᵀ + bias) + residual, and the gradients of the product. See lib/ops/linear.ts for the equations.
//
// The product, its register tiles, its tasks and packed weights are in gemm.h; bias, activation and residual are applied while a task's
// block of the output is in L2. The weight gradient sums over rows: slabs of 512 rows of dy and x are packed, each element once,
// and multiplied while they lie in L3. Bound by multiply-adds, below some 12 rows by reading the weight. One core of an AMD
// EPYC (Zen 5), 2026-11-22, `selscan-bench linear`, bf16, share of the peak of vdpbf16ps in that run (528 GFLOP/s):
//   512×1024×1024 forward 0.89, input gradient 0.90, weight gradient 0.83
//   8192×256×1024 input gradient 0.83, weight gradient 0.67; 8192×512×256: 0.85 and 0.72; 8192×512×48: weight gradient 0.55
//   f32 at 512×1024×1024: 0.88 of the peak of f32, as fast as sgemm of OpenBLAS 0.3.21 with its kernels for SkylakeX
#include <cstring>

#include "core/kernel.h"
#include "cpu/gemm_int8.h"
#include "cpu/threads.h"
#include "ops/linear.h"

#define EACH_ISA "cpu/linear.cpp"
#include "cpu/each_isa.h"

#ifdef ISA
namespace selscan::ISA {
namespace {

using ops::Activation;

struct Epilogue {
  const float *sums, *bias, *residual;
  float *y, *pre;  // either may be absent; one of them is sums
  int64_t out;
};

template <Activation A>
inline F32 activate(F32 x) {
  if constexpr (A == Activation::silu) return silu(x);
  if constexpr (A == Activation::softplus) return softplus(x);
  if constexpr (A == Activation::gelu) return gelu(x);
  return x;
}

template <Activation A>
void finish(const Epilogue& e, const cpu::Block& block) {
  const int64_t begin = block.panel * cpu::PanelWidth;
  const int64_t end = e.out < block.panelEnd * cpu::PanelWidth ? e.out : block.panelEnd * cpu::PanelWidth;
  for (int64_t row = block.row; row < block.rowEnd; row++)
    for (int64_t column = begin; column < end; column += Lanes) {
      const int n = end - column < Lanes ? static_cast<int>(end - column) : Lanes;
      const int64_t at = row * e.out + column;
      F32 value = load(e.sums + at, n);
      if (e.bias) value = value + load(e.bias + column, n);
      if (e.pre) store(e.pre + at, value, n);
      if (!e.y) continue;
      value = activate<A>(value);
      if (e.residual) value = value + load(e.residual + at, n);
      store(e.y + at, value, n);
    }
}

template <Activation A>
inline F32 derivative(F32 x) {
  if constexpr (A == Activation::silu) return siluGrad(x);
  if constexpr (A == Activation::softplus) return selectGreater(x, set(20.0f), set(1.0f), sigmoid(x));
  if constexpr (A == Activation::gelu) return geluGrad(x);
  return set(1.0f);
}

template <Activation A>
void scaleByDerivative(const float* dy, const float* pre, float* dx, int64_t count) {
  constexpr int64_t Stretch = 4096;
  cpu::parallel((count + Stretch - 1) / Stretch, [&](int64_t task) {
    const int64_t end = (task + 1) * Stretch < count ? (task + 1) * Stretch : count;
    for (int64_t i = task * Stretch; i < end; i += Lanes) {
      const int n = end - i < Lanes ? static_cast<int>(end - i) : Lanes;
      store(dx + i, load(dy + i, n) * derivative<A>(load(pre + i, n)), n);
    }
  });
}

}  // namespace

void linear(const Call& call) {
  const auto [x, weight, bias, residual, scales] = call.in<5>();
  const auto [y, pre] = call.out<2>();
  if (!y && !pre) return;
  const int64_t rows = x[0], in = x[1], out = weight[0];
  float* sums = pre ? pre.f32() : y.f32();
  cpu::Product product{{x.f32(), in, 1}, cpu::weightPanels(call, 1, 4, cpu::productsOf(call.attributes, weight.dtype)), sums, out};
  cpu::roundAhead(product, rows, call.workspace);
  const Epilogue epilogue{sums, bias.f32(), residual.f32(), y.f32(), pre.f32(), out};
  const Activation activation = ops::activationOf(call.attributes);
  if (activation == Activation::none && !bias && !residual && !(y && pre)) return cpu::multiply(product, rows);
  const auto apply = activation == Activation::silu       ? finish<Activation::silu>
                     : activation == Activation::softplus ? finish<Activation::softplus>
                     : activation == Activation::gelu     ? finish<Activation::gelu>
                                                          : finish<Activation::none>;
  cpu::multiply(product, rows, [&](const cpu::Block& block) { apply(epilogue, block); });
}

void activationGrad(const Call& call) {
  const auto [dy, pre] = call.in<2>();
  const auto [dx] = call.out<1>();
  if (!dx) return;
  const Activation activation = ops::activationOf(call.attributes);
  const auto apply = activation == Activation::silu       ? scaleByDerivative<Activation::silu>
                     : activation == Activation::softplus ? scaleByDerivative<Activation::softplus>
                     : activation == Activation::gelu     ? scaleByDerivative<Activation::gelu>
                                                          : scaleByDerivative<Activation::none>;
  apply(dy.f32(), pre.f32(), dx.f32(), dy.elements());
}

}  // namespace selscan::ISA
#else
namespace selscan::cpu {
namespace {

void linearInputGrad(const Call& call) {
  const auto [dy, weight] = call.in<2>();
  const auto [dx] = call.out<1>();
  if (!dx) return;
  const int64_t out = weight[0], in = weight[1];
  const auto* words = reinterpret_cast<const uint32_t*>(call.prepared[1]);
  multiply({{dy.f32(), out, 1}, {productsOf(call.attributes, weight.dtype), out, in, words}, dx.f32(), in}, dy[0]);
}

void linearWeightGrad(const Call& call) {
  const auto [dy, x] = call.in<2>();
  const auto [dweight] = call.out<1>();
  if (!dweight) return;
  const int64_t rows = dy[0], out = dy[1], in = x[1];
  const Product product{{dy.f32(), 1, out}, {productsOf(call.attributes, Dtype::f32), rows, in}, dweight.f32(), in};
  multiplySlabs(product, {x.data, Dtype::f32, in, 1}, out, call.workspace);
}

const Preparation* prepareForward(const Call& call, int input) {
  return weightForm(call, input, 1, 4, productsOf(call.attributes, call.inputs[1].dtype));
}
const Preparation* prepareBackward(const Call& call, int input) {
  return input == 1 ? backwardPanels(productsOf(call.attributes, call.inputs[1].dtype)) : nullptr;
}

}  // namespace

KERNEL(linear, cpu, "x weight bias? residual? scales? -> y pre; activation precision dtype", .run = DISPATCH(linear),
       .limit = ops::linearLimit,
       .workspaceBytes = [](const Call& call) { return roundedBytes(call.inputs[1], call.inputs[0][0]); }, .prepare = prepareForward)
KERNEL(linearInputGrad, cpu, "dy weight -> dx; precision dtype", .run = linearInputGrad,
       .limit = ops::inputGradLimit, .prepare = prepareBackward)
KERNEL(linearWeightGrad, cpu, "dy x -> dweight; precision", .run = linearWeightGrad, .limit = ops::weightGradLimit,
       .workspaceBytes = [](const Call& call) {
         const auto [dy, x] = call.in<2>();
         return slabBytes(productsOf(call.attributes, Dtype::f32), dy[1], dy[0], x[1]);
       })
KERNEL(activationGrad, cpu, "dy pre -> dx; activation", .run = DISPATCH(activationGrad), .limit = ops::activationGradLimit,
       .inPlace = {{0, 0}, {0, 1}})

}  // namespace selscan::cpu
#endif
