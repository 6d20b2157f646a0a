// One function over all elements of tensors of one shape: the kernel behind elementwise.cu, cast.cu and the broadcasts.
//
// A thread takes 16 bytes of the result at a time and strides over the grid, so that a few waves of blocks cover any size; at
// full occupancy that is 32 KB of loads in flight per operand and multiprocessor, more than memory needs to be kept busy.
#pragma once
#include <algorithm>

#include "cuda/launch.cuh"

namespace selscan::cuda {

constexpr unsigned ElementThreads = 256;

// The function itself, or what it becomes once a thread has read the scalars it points to.
template <class Function>
__device__ __forceinline__ auto resolved(const Function& function) {
  if constexpr (requires { function.read(); }) return function.read();
  else return function;
}

// y[i] = function(operands[i]…) for i < count. Arrays are 64-byte aligned: whole vectors first, then the rest one by one. y may
// be one of the operands.
// registers: 32
template <class T, class Function, class... Operands>
__global__ __launch_bounds__(ElementThreads) void overElements(int64_t count, Function function, T* y,
                                                               const Operands*... operands) {
  constexpr int N = 16 / sizeof(T);
  const auto apply = resolved(function);
  const int64_t first = int64_t{blockIdx.x} * blockDim.x + threadIdx.x, stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t v = first; v < count / N; v += stride) {
    const int64_t at = v * N;
    float out[N];
    [&](const auto... in) {  // by value: by reference each element would be a load of its own
#pragma unroll
      for (int i = 0; i < N; i++) out[i] = apply(toFloat(in.at[i])...);
    }(*reinterpret_cast<const Vec<Operands, N>*>(operands + at)...);
    storeGlobal<N>(y + at, out);
  }
  for (int64_t i = count / N * N + first; i < count; i += stride) y[i] = fromFloat<T>(apply(toFloat(operands[i])...));
}

template <class T, class Function, class... Operands>
void launchElements(CudaDevice& device, int64_t count, Function function, T* y, const Operands*... operands) {
  constexpr int64_t Waves = 2, BlocksPerMultiprocessor = 8;  // 2,048 threads
  const int64_t wanted = ceilDiv(count, ElementThreads * (16 / sizeof(T)));
  const int64_t blocks = std::min<int64_t>(wanted, device.multiprocessors() * Waves * BlocksPerMultiprocessor);
  const Grid grid{static_cast<unsigned>(blocks), ElementThreads};
  launch(device, grid, overElements<T, Function, Operands...>, count, function, y, operands...);
}

}  // namespace selscan::cuda
