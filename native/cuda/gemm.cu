// The instances of gemm.cuh's kernel for linears: three layouts, one or three planes, three tile sizes.
#include "cuda/gemm.cuh"

#include "cuda/cublas.h"

namespace selscan::cuda {

void multiply(CudaDevice& device, Layout layout, const Product& product, const Finish& finish) {
  if (multiplyByCublas(device, layout, product, finish)) return;
  switch (layout) {
    case Layout::forward: return launchGemm<false, false>(device, product, finish);
    case Layout::inputGrad: return launchGemm<false, true>(device, product, finish);
    case Layout::weightGrad: return launchGemm<true, true>(device, product, finish);
  }
}

}  // namespace selscan::cuda
