// Elementwise arithmetic on tensors of one shape. See lib/ops/elementwise.ts for the equations.
//
// Blocks of 4096 elements over the threads; bound by memory.
#include <algorithm>

#include "core/dims.h"
#include "core/kernel.h"
#include "cpu/threads.h"

#define EACH_ISA "cpu/elementwise.cpp"
#include "cpu/each_isa.h"

#ifdef ISA
#include "cpu/elements.h"

namespace selscan::ISA {
namespace {

template <class Function>
void unary(const Call& call, Function function) {
  const auto [x] = call.in<1>();
  const auto [y] = call.out<1>();
  if (!y) return;
  const float* from = x.f32();
  float* to = y.f32();
  overElements(x.elements(), [=](int64_t i, int n) { store(to + i, function(load(from + i, n)), n); });
}

template <class Function>
void binary(const Call& call, Function function) {
  const auto [a, b] = call.in<2>();
  const auto [y] = call.out<1>();
  if (!y) return;
  const float *left = a.f32(), *right = b.f32();
  float* to = y.f32();
  overElements(a.elements(), [=](int64_t i, int n) { store(to + i, function(load(left + i, n), load(right + i, n)), n); });
}

}  // namespace

void add(const Call& call) {
  binary(call, [](F32 a, F32 b) { return a + b; });
}
void multiply(const Call& call) {
  binary(call, [](F32 a, F32 b) { return a * b; });
}
void scale(const Call& call) {
  const F32 factor = set(static_cast<float>(call.attributes.number("factor")));
  unary(call, [=](F32 x) { return x * factor; });
}
void scaleBy(const Call& call) {
  const auto [x, by] = call.in<2>();
  const auto [y] = call.out<1>();
  if (!y) return;
  const F32 factor = set(*by.f32());
  const float* from = x.f32();
  float* to = y.f32();
  overElements(x.elements(), [=](int64_t i, int n) { store(to + i, load(from + i, n) * factor, n); });
}
void exponential(const Call& call) {
  unary(call, [](F32 x) { return exp(x); });
}
void negativeExponential(const Call& call) {
  unary(call, [](F32 x) { return set(0.0f) - exp(x); });
}
void siluForward(const Call& call) {
  unary(call, [](F32 x) { return silu(x); });
}
void siluBackward(const Call& call) {
  binary(call, [](F32 dy, F32 x) { return dy * siluGrad(x); });
}
void accumulate(const Call& call) {
  const auto [total, x] = call.in<2>();
  float* to = total.f32();
  const float* from = x.f32();
  overElements(x.elements(), [=](int64_t i, int n) { store(to + i, load(to + i, n) + load(from + i, n), n); });
}
void overwrite(const Call& call) {
  const auto [total, x] = call.in<2>();
  float* to = total.f32();
  const float* from = x.f32();
  overElements(x.elements(), [=](int64_t i, int n) { store(to + i, load(from + i, n), n); });
}

}  // namespace selscan::ISA
#else
namespace selscan::cpu {
KERNEL(add, cpu, "a b -> y", .run = DISPATCH(add),
       .limit = [](const Call& call) { return dimsMismatch(call, {"...", "..."}, {"..."}); }, .inPlace = {{0, 0}, {0, 1}})
KERNEL(multiply, cpu, "a b -> y", .run = DISPATCH(multiply),
       .limit = [](const Call& call) { return dimsMismatch(call, {"...", "..."}, {"..."}); }, .inPlace = {{0, 0}, {0, 1}})
KERNEL(scale, cpu, "x -> y; factor", .run = DISPATCH(scale),
       .limit = [](const Call& call) { return dimsMismatch(call, {"..."}, {"..."}); }, .inPlace = {{0, 0}})
KERNEL(scaleBy, cpu, "x by -> y", .run = DISPATCH(scaleBy),
       .limit = [](const Call& call) { return dimsMismatch(call, {"...", ""}, {"..."}); }, .inPlace = {{0, 0}})
KERNEL(exp, cpu, "x -> y", .run = DISPATCH(exponential),
       .limit = [](const Call& call) { return dimsMismatch(call, {"..."}, {"..."}); }, .inPlace = {{0, 0}})
KERNEL(negExp, cpu, "x -> y", .run = DISPATCH(negativeExponential),
       .limit = [](const Call& call) { return dimsMismatch(call, {"..."}, {"..."}); }, .inPlace = {{0, 0}})
KERNEL(silu, cpu, "x -> y", .run = DISPATCH(siluForward),
       .limit = [](const Call& call) { return dimsMismatch(call, {"..."}, {"..."}); }, .inPlace = {{0, 0}})
KERNEL(siluGrad, cpu, "dy x -> dx", .run = DISPATCH(siluBackward),
       .limit = [](const Call& call) { return dimsMismatch(call, {"...", "..."}, {"..."}); }, .inPlace = {{0, 0}, {0, 1}})
KERNEL(accumulate, cpu, "total* x ->", .run = DISPATCH(accumulate),
       .limit = [](const Call& call) { return dimsMismatch(call, {"...", "..."}, {}); })
KERNEL(overwrite, cpu, "total* x ->", .run = DISPATCH(overwrite),
       .limit = [](const Call& call) { return dimsMismatch(call, {"...", "..."}, {}); })
}  // namespace selscan::cpu
#endif
