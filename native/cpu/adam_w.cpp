// One AdamW step of one parameter, and the factor that clips gradients. See lib/ops/adam-w.ts for the equations.
//
// Blocks of 4096 elements over the threads; bound by memory (16 bytes read and 12 written per element). Factors that
// depend on the step alone are made once in f64.
#include <cmath>

#include "core/dims.h"
#include "core/kernel.h"
#include "cpu/threads.h"

#define EACH_ISA "cpu/adam_w.cpp"
#include "cpu/each_isa.h"

#ifdef ISA
namespace selscan::ISA {
namespace {
constexpr int64_t Block = 4096;

struct Factors {
  F32 clip, keep, rate1, rate2, beta2, rootCorrection, eps, stepSize;
};

inline void update(const Factors& f, float* param, const float* grad, float* m, float* v, int n) {
  const F32 g = f.clip * load(grad, n);
  const F32 first = load(m, n), mean = fma(f.rate1, g - first, first);
  const F32 square = fma(f.beta2, load(v, n), f.rate2 * (g * g));
  const F32 size = sqrt(square) * f.rootCorrection + f.eps;
  store(m, mean, n);
  store(v, square, n);
  store(param, fma(load(param, n), f.keep, f.stepSize * (mean / size)), n);
}
}  // namespace

void adamW(const Call& call) {
  const auto [param, grad, m, v, rate, step, clip] = call.in<7>();
  const double beta1 = call.attributes.number("beta1"), beta2 = call.attributes.number("beta2");
  const double eps = call.attributes.number("eps"), decay = call.attributes.number("decay");
  const double lr = *rate.f32(), t = *step.f32();
  const auto constant = [](double value) { return set(static_cast<float>(value)); };
  const Factors factors{set(*clip.f32()),         constant(1 - lr * decay), constant(1 - beta1),
                        constant(1 - beta2),      constant(beta2),          constant(1 / std::sqrt(1 - std::pow(beta2, t))),
                        constant(eps),            constant(-lr / (1 - std::pow(beta1, t)))};
  const int64_t count = param.elements();
  float *p = param.f32(), *means = m.f32(), *squares = v.f32();
  const float* g = grad.f32();
  cpu::parallel((count + Block - 1) / Block, [&](int64_t block) {
    const int64_t end = (block + 1) * Block < count ? (block + 1) * Block : count;
    int64_t i = block * Block;
    for (; i + Lanes <= end; i += Lanes) update(factors, p + i, g + i, means + i, squares + i, Lanes);
    if (i < end) update(factors, p + i, g + i, means + i, squares + i, static_cast<int>(end - i));
  });
}

}  // namespace selscan::ISA
#else
namespace selscan::cpu {

static void clipScale(const Call& call) {
  const auto [squares] = call.in<1>();
  const auto [norm, scale] = call.out<2>();
  const double length = std::sqrt(static_cast<double>(*squares.f32()));
  const double factor = call.attributes.number("max") / (length + 1e-6);
  if (norm) *norm.f32() = static_cast<float>(length);
  if (scale) *scale.f32() = static_cast<float>(factor > 1 ? 1 : factor);  // NaN stays: a broken gradient must show
}

KERNEL(adamW, cpu, "param* grad m* v* rate step clip ->; beta1 beta2 eps decay", .run = DISPATCH(adamW),
       .limit = [](const Call& call) { return dimsMismatch(call, {"...", "...", "...", "...", "", "", ""}, {}); })
KERNEL(clipScale, cpu, "squares -> norm scale; max", .run = clipScale,
       .limit = [](const Call& call) { return dimsMismatch(call, {""}, {"", ""}); })
}  // namespace selscan::cpu
#endif
