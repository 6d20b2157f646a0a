// The gate of a SwiGLU, forward and backward. See lib/ops/swiglu.ts for the equations.
//
// Blocks of 4096 elements over the threads; bound by the SiLU where all is in a cache, else by memory.
#include "core/kernel.h"
#include "cpu/threads.h"
#include "ops/swiglu.h"

#define EACH_ISA "cpu/swiglu.cpp"
#include "cpu/each_isa.h"

#ifdef ISA
#include "cpu/elements.h"

namespace selscan::ISA {
void swigluForward(const Call& call) {
  const auto [gate, up] = call.in<2>();
  const auto [y] = call.out<1>();
  if (!y) return;
  const float *gates = gate.f32(), *ups = up.f32();
  float* to = y.f32();
  overElements(y.elements(), [=](int64_t i, int n) { store(to + i, silu(load(gates + i, n)) * load(ups + i, n), n); });
}

// silu′(v) = σ(v)·(1 + v·(1 − σ(v))): σ is made once for both gradients.
void swigluBackward(const Call& call) {
  const auto [dy, gate, up] = call.in<3>();
  const auto [dgate, dup] = call.out<2>();
  const float *gradients = dy.f32(), *gates = gate.f32(), *ups = up.f32();
  float *toGate = dgate.f32(), *toUp = dup.f32();
  overElements(dy.elements(), [=](int64_t i, int n) {
    const F32 d = load(gradients + i, n), v = load(gates + i, n), u = load(ups + i, n), s = sigmoid(v);
    if (toGate) store(toGate + i, d * u * (s * fma(v, set(1.0f) - s, set(1.0f))), n);
    if (toUp) store(toUp + i, d * (v * s), n);
  });
}

}  // namespace selscan::ISA
#else
namespace selscan::cpu {
KERNEL(swiglu, cpu, "gate up -> y", .run = DISPATCH(swigluForward), .limit = ops::swigluLimit, .inPlace = {{0, 0}, {0, 1}})
KERNEL(swigluGrad, cpu, "dy gate up -> dgate dup", .run = DISPATCH(swigluBackward), .limit = ops::swigluGradLimit,
       .inPlace = {{0, 1}, {1, 2}, {0, 0}, {1, 0}})
}  // namespace selscan::cpu
#endif
