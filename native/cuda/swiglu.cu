// The gate of a SwiGLU, forward and backward. See lib/ops/swiglu.ts for the equations.
//
// A thread takes 16 bytes of each operand at a time and strides over the grid. Bound by memory: 3 elements moved per element
// forward, 5 backward; the two operations of the special function unit that a sigmoid takes are a third of that in bf16 on an
// H200. Not measured on a GPU yet.
#include "ops/swiglu.h"

#include "cuda/elementwise.cuh"
#include "cuda/math.cuh"

namespace selscan::cuda {
namespace {

struct Gate {
  __device__ float operator()(float gate, float up) const { return silu(gate) * up; }
};

void swiglu(const Call& call) {
  const auto [gate, up] = call.in<2>();
  const auto [y] = call.out<1>();
  if (!y) return;
  withType(y.dtype, [&, gate = gate, up = up, y = y]<class T>() {
    launchElements(deviceOf(call), y.elements(), Gate{}, dataOf<T>(y), static_cast<const T*>(dataOf<T>(gate)),
                   static_cast<const T*>(dataOf<T>(up)));
  });
}

template <class T>
struct GateGrad {
  const T *dy, *gate, *up;
  T *dgate, *dup;  // null: nobody reads it. May lie where an input does
  int64_t count;

  template <int N>
  __device__ __forceinline__ void apply(int64_t at) const {
    float d[N], v[N], u[N];
    loadVec<N>(dy + at, d);
    loadVec<N>(gate + at, v);
    loadVec<N>(up + at, u);
    float toGate[N], toUp[N];
#pragma unroll
    for (int i = 0; i < N; i++) {
      const float s = sigmoid(v[i]);
      toGate[i] = d[i] * u[i] * (s * fmaf(v[i], 1.0f - s, 1.0f));
      toUp[i] = d[i] * (v[i] * s);
    }
    if (dgate) storeGlobal<N>(dgate + at, toGate);
    if (dup) storeGlobal<N>(dup + at, toUp);
  }
};

// registers: 40
template <class T>
__global__ __launch_bounds__(ElementThreads) void gateGrad(GateGrad<T> grad) {
  constexpr int N = 16 / sizeof(T);
  const int64_t first = int64_t{blockIdx.x} * blockDim.x + threadIdx.x, stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t v = first; v < grad.count / N; v += stride) grad.template apply<N>(v * N);
  for (int64_t i = grad.count / N * N + first; i < grad.count; i += stride) grad.template apply<1>(i);
}

void swigluGrad(const Call& call) {
  const auto [dy, gate, up] = call.in<3>();
  const auto [dgate, dup] = call.out<2>();
  withType(dy.dtype, [&, dy = dy, gate = gate, up = up, dgate = dgate, dup = dup]<class T>() {
    const GateGrad<T> grad{dataOf<T>(dy), dataOf<T>(gate), dataOf<T>(up), dataOf<T>(dgate), dataOf<T>(dup), dy.elements()};
    const int64_t wanted = ceilDiv(grad.count, ElementThreads * (16 / sizeof(T)));
    const int64_t blocks = std::min<int64_t>(wanted, deviceOf(call).multiprocessors() * 16);
    launch(deviceOf(call), {static_cast<unsigned>(blocks), ElementThreads}, gateGrad<T>, grad);
  });
}

KERNEL(swiglu, cuda, "gate up -> y", .run = swiglu, .limit = ops::swigluLimit, .inPlace = {{0, 0}, {0, 1}})
KERNEL(swigluGrad, cuda, "dy gate up -> dgate dup", .run = swigluGrad, .limit = ops::swigluGradLimit,
       .inPlace = {{0, 1}, {1, 2}, {0, 0}, {1, 0}})

}  // namespace
}  // namespace selscan::cuda
