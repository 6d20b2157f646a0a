// Elementwise arithmetic on tensors of one shape. See lib/ops/elementwise.ts for the equations.
//
// Bound by memory: the floor of `add` is 3 elements moved per element, of `silu` 2. Not measured on a GPU yet.
#include "cuda/elementwise.cuh"

#include "core/dims.h"
#include "cuda/math.cuh"

namespace selscan::cuda {
namespace {

struct Add {
  __device__ float operator()(float a, float b) const { return a + b; }
};
struct Multiply {
  __device__ float operator()(float a, float b) const { return a * b; }
};
struct Scale {
  float factor;
  __device__ float operator()(float x) const { return factor * x; }
};
struct ScaleBy {
  const float* factor;
  __device__ Scale read() const { return {__ldg(factor)}; }
};
struct Exp {
  __device__ float operator()(float x) const { return expf(x); }  // not the fast one: its error grows with |x|
};
struct NegExp {
  __device__ float operator()(float x) const { return -expf(x); }
};
struct Silu {
  __device__ float operator()(float x) const { return silu(x); }
};
struct SiluGrad {
  __device__ float operator()(float dy, float x) const { return dy * siluGrad(x); }
};

// The first `Inputs` inputs, all of the dtype of the output, through function.
template <int Inputs, class Function>
void elementwise(const Call& call, Function function) {
  const auto [y] = call.out<1>();
  if (!y) return;
  withType(y.dtype, [&, y = y]<class T>() {
    const auto in = [&](int i) { return static_cast<const T*>(dataOf<T>(call.inputs[i])); };
    if constexpr (Inputs == 1) launchElements(deviceOf(call), y.elements(), function, dataOf<T>(y), in(0));
    else launchElements(deviceOf(call), y.elements(), function, dataOf<T>(y), in(0), in(1));
  });
}

void add(const Call& call) { elementwise<2>(call, Add{}); }
void multiply(const Call& call) { elementwise<2>(call, Multiply{}); }
void scale(const Call& call) { elementwise<1>(call, Scale{static_cast<float>(call.attributes.number("factor"))}); }
void scaleBy(const Call& call) { elementwise<1>(call, ScaleBy{call.inputs[1].f32()}); }
void exponential(const Call& call) { elementwise<1>(call, Exp{}); }
void negativeExponential(const Call& call) { elementwise<1>(call, NegExp{}); }
void siluForward(const Call& call) { elementwise<1>(call, Silu{}); }
void siluBackward(const Call& call) { elementwise<2>(call, SiluGrad{}); }

void accumulate(const Call& call) {
  const auto [total, x] = call.in<2>();
  launchElements(deviceOf(call), total.elements(), Add{}, total.f32(), static_cast<const float*>(total.f32()),
                 static_cast<const float*>(x.f32()));
}
void overwrite(const Call& call) {
  const auto [total, x] = call.in<2>();
  if (total.data != x.data) call.device.copy(total.data, x.data, total.sizeBytes());
}

std::string unaryLimit(const Call& call) { return dimsMismatch(call, {"activation ..."}, {"activation ..."}); }
std::string binaryLimit(const Call& call) { return dimsMismatch(call, {"activation ...", "activation ..."}, {"activation ..."}); }
std::string updateLimit(const Call& call) { return dimsMismatch(call, {"...", "..."}, {}); }

KERNEL(add, cuda, "a b -> y", .run = add, .limit = binaryLimit, .inPlace = {{0, 0}, {0, 1}})
KERNEL(multiply, cuda, "a b -> y", .run = multiply, .limit = binaryLimit, .inPlace = {{0, 0}, {0, 1}})
KERNEL(scale, cuda, "x -> y; factor", .run = scale, .limit = unaryLimit, .inPlace = {{0, 0}})
KERNEL(scaleBy, cuda, "x by -> y", .run = scaleBy,
       .limit = [](const Call& call) { return dimsMismatch(call, {"activation ...", ""}, {"activation ..."}); },
       .inPlace = {{0, 0}})
KERNEL(exp, cuda, "x -> y", .run = exponential, .limit = unaryLimit, .inPlace = {{0, 0}})
KERNEL(negExp, cuda, "x -> y", .run = negativeExponential,
       .limit = [](const Call& call) { return dimsMismatch(call, {"..."}, {"..."}); }, .inPlace = {{0, 0}})
KERNEL(silu, cuda, "x -> y", .run = siluForward, .limit = unaryLimit, .inPlace = {{0, 0}})
KERNEL(siluGrad, cuda, "dy x -> dx", .run = siluBackward, .limit = binaryLimit, .inPlace = {{0, 0}, {0, 1}})
KERNEL(accumulate, cuda, "total* x ->", .run = accumulate, .limit = updateLimit)
KERNEL(overwrite, cuda, "total* x ->", .run = overwrite, .limit = updateLimit)

}  // namespace
}  // namespace selscan::cuda
