// How host code starts a kernel: launch(device, {grid, threads, sharedBytes}, kernel, arguments…).
#pragma once
#include <utility>

#include "cuda/device.h"
#include "cuda/vec.cuh"

namespace selscan::cuda {

struct Grid {
  dim3 blocks;
  unsigned threads;
  size_t sharedBytes = 0;
};

inline int64_t ceilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Arguments are copied at the call. An empty grid is no work. Grids beyond the hardware's limits are refused: .limit of a
// kernel keeps shapes inside them, so that this is never met.
template <class... Expected, class... Actual>
void launch(CudaDevice& device, const Grid& grid, void (*kernel)(Expected...), Actual&&... arguments) {
  if (grid.blocks.x == 0 || grid.blocks.y == 0 || grid.blocks.z == 0) return;
  constexpr size_t SharedDefault = 48 * 1024;
  if (grid.sharedBytes > SharedDefault)
    device.check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(grid.sharedBytes)),
                 "shared memory of a kernel");
  cudaLaunchConfig_t config{};
  config.gridDim = grid.blocks;
  config.blockDim = dim3(grid.threads);
  config.dynamicSmemBytes = grid.sharedBytes;
  config.stream = device.stream();
  device.check(cudaLaunchKernelEx(&config, kernel, std::forward<Actual>(arguments)...), "launch");
}

// Calls body.template operator()<T>() with the C++ type of an activation's dtype.
template <class Body>
void withType(Dtype dtype, Body&& body) {
  if (dtype == Dtype::bf16) body.template operator()<bf16>();
  else body.template operator()<float>();
}
template <class T>
T* dataOf(const Tensor& tensor) {
  return reinterpret_cast<T*>(tensor.data);
}

}  // namespace selscan::cuda
