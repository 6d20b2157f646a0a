// Between f32 and bf16, in both directions. See lib/ops/cast.ts.
//
// Bound by memory: 6 bytes an element. Not measured on a GPU yet.
#include "cuda/elementwise.cuh"
#include "ops/cast.h"

namespace selscan::cuda {
namespace {

struct Same {
  __device__ float operator()(float x) const { return x; }
};

void cast(const Call& call) {
  const auto [x] = call.in<1>();
  const auto [y] = call.out<1>();
  if (!y) return;
  CudaDevice& device = deviceOf(call);
  if (x.dtype == y.dtype) device.copy(y.data, x.data, y.sizeBytes());
  else if (y.dtype == Dtype::bf16) launchElements(device, y.elements(), Same{}, dataOf<bf16>(y), dataOf<const float>(x));
  else launchElements(device, y.elements(), Same{}, y.f32(), dataOf<const bf16>(x));
}

KERNEL(cast, cuda, "x -> y; dtype", .run = cast, .limit = ops::castLimit)

}  // namespace
}  // namespace selscan::cuda
