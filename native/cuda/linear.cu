// Linear layers: y = act(x·Wᵀ + bias) + residual, and the gradients of the product. See lib/ops/linear.ts for the equations.
//
// The products are gemm.cuh's, over planes that are kept beside a weight and made on each run of activations; bias, activation
// and residual are applied to finished tiles. Bound by the tensor cores, for few rows by the bytes of the weight. activationGrad
// is bound by memory: three elements moved per element. Not measured on a GPU yet.
#include "cuda/cublas.h"
#include "cuda/gemm.cuh"

namespace selscan::cuda {
namespace {

void linear(const Call& call) {
  const auto [x, weight, bias, residual, scales] = call.in<5>();
  const auto [y, pre] = call.out<2>();
  if (!y && !pre) return;
  const Finish finish{.columns = weight[0],
                      .y = AnyFloat(y),
                      .pre = AnyFloat(pre),
                      .residual = AnyFloat(residual),
                      .bias = bias.f32(),
                      .activation = ops::activationOf(call.attributes)};
  const Product product{planesOf(call, 0), planesOf(call, 1), x[0], weight[0], x[1], planeCountOf(call)};
  multiply(deviceOf(call), Layout::forward, product, finish);
}

void linearInputGrad(const Call& call) {
  const auto [dy, weight] = call.in<2>();
  const auto [dx] = call.out<1>();
  if (!dx) return;
  const Product product{planesOf(call, 0), planesOf(call, 1), dy[0], weight[1], weight[0], planeCountOf(call)};
  multiply(deviceOf(call), Layout::inputGrad, product, {.columns = weight[1], .y = AnyFloat(dx)});
}

void linearWeightGrad(const Call& call) {
  const auto [dy, x] = call.in<2>();
  const auto [dweight] = call.out<1>();
  if (!dweight) return;
  const Product product{planesOf(call, 0), planesOf(call, 1), dy[1], x[1], dy[0], planeCountOf(call)};
  multiply(deviceOf(call), Layout::weightGrad, product, {.columns = x[1], .y = AnyFloat(dweight)});
}

constexpr unsigned Threads = 256;

template <int N>
__device__ __forceinline__ void scaleByDerivative(const AnyFloat& dy, const AnyFloat& pre, const AnyFloat& dx,
                                                  ops::Activation activation, int64_t at) {
  float gradient[N], value[N];
  dy.load<N>(at, gradient);
  pre.load<N>(at, value);
#pragma unroll
  for (int i = 0; i < N; i++) {
    if (activation == ops::Activation::silu) gradient[i] *= siluGrad(value[i]);
    else if (activation == ops::Activation::softplus) gradient[i] *= softplusGrad(value[i]);
    else if (activation == ops::Activation::gelu) gradient[i] *= geluGrad(value[i]);
  }
  dx.store<N>(at, gradient);
}

// registers: 40
__global__ __launch_bounds__(Threads) void throughActivation(const AnyFloat dy, const AnyFloat pre, const AnyFloat dx,
                                                             ops::Activation activation, int64_t count) {
  constexpr int N = 4;
  const int64_t first = int64_t{blockIdx.x} * blockDim.x + threadIdx.x, stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t v = first; v < count / N; v += stride) scaleByDerivative<N>(dy, pre, dx, activation, v * N);
  for (int64_t i = count / N * N + first; i < count; i += stride) scaleByDerivative<1>(dy, pre, dx, activation, i);
}

void activationGrad(const Call& call) {
  const auto [dy, pre] = call.in<2>();
  const auto [dx] = call.out<1>();
  if (!dx) return;
  const int64_t blocks = std::min<int64_t>(ceilDiv(dx.elements(), Threads * 4), deviceOf(call).multiprocessors() * 16);
  launch(deviceOf(call), {static_cast<unsigned>(blocks), Threads}, throughActivation, AnyFloat(dy), AnyFloat(pre), AnyFloat(dx),
         ops::activationOf(call.attributes), dx.elements());
}

}  // namespace

KERNEL(linear, cuda, "x weight bias? residual? scales? -> y pre; activation precision dtype", .run = linear,
       .limit = withCublas<ops::linearLimit>,
       .prepare = [](const Call& call, int input) { return input < 2 ? planesFor(call, input) : nullptr; }, .inPlace = {{0, 3}})
KERNEL(linearInputGrad, cuda, "dy weight -> dx; precision dtype", .run = linearInputGrad,
       .limit = withCublas<ops::inputGradLimit>, .prepare = planesFor)
KERNEL(linearWeightGrad, cuda, "dy x -> dweight; precision", .run = linearWeightGrad, .limit = withCublas<ops::weightGradLimit>,
       .prepare = planesFor)
KERNEL(activationGrad, cuda, "dy pre -> dx; activation", .run = activationGrad, .limit = ops::activationGradLimit)

}  // namespace selscan::cuda
