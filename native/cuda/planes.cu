// Makes the planes of planes.cuh from tensors.
//
// A thread writes 8 elements, 16 bytes of each plane, from 32 bytes of f32 or 16 of bf16; rows of a width that is no multiple
// of 8 begin anywhere and are read element by element, out of lines that the neighbours read as well. Bound by memory: the floor
// is 4 + 2·planes bytes per element of f32. Not measured on a GPU yet.
#include "cuda/planes.cuh"

namespace selscan::cuda {
namespace {

constexpr unsigned Threads = 256;

// registers: 48
template <class T, int Count>
__global__ __launch_bounds__(Threads) void toPlanes(const T* from, bf16* to, int64_t rows, int64_t columns) {
  const int64_t width = paddedWidth(columns), planeStride = rows * width, pieces = planeStride / 8;
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t piece = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; piece < pieces; piece += stride) {
    const int64_t row = piece / (width / 8), column = piece % (width / 8) * 8;
    const T* source = from + row * columns + column;
    float in[8];
    if (width == columns) {
      loadVec<8>(source, in);
    } else {
#pragma unroll
      for (int i = 0; i < 8; i++) in[i] = column + i < columns ? toFloat(source[i]) : 0.0f;
    }
    Vec<bf16, 8> out[Count];
#pragma unroll
    for (int i = 0; i < 8; i++) {
      bf16 planes[Count];
      split(in[i], planes);
#pragma unroll
      for (int p = 0; p < Count; p++) out[p].at[i] = planes[p];
    }
#pragma unroll
    for (int p = 0; p < Count; p++) storeWhole(to + p * planeStride + piece * 8, out[p]);
  }
}

template <int Count>
void make(const Tensor& from, std::byte* prepared, Device& device) {
  auto& gpu = static_cast<CudaDevice&>(device);
  withType(from.dtype, [&]<class T>() {
    const int64_t pieces = from[0] * paddedWidth(from[1]) / 8;
    const int64_t blocks = std::min<int64_t>(ceilDiv(pieces, Threads), gpu.multiprocessors() * 16);
    launch(gpu, {static_cast<unsigned>(blocks), Threads}, toPlanes<T, Count>, dataOf<T>(from), reinterpret_cast<bf16*>(prepared),
           from[0], from[1]);
  });
}
template <int Count>
size_t bytes(const Tensor& from) {
  return planeBytes(Count, from[0], from[1]);
}

constexpr Preparation OnePlane{"plane of bf16", bytes<1>, make<1>};
constexpr Preparation ThreePlanes{"three planes of bf16", bytes<3>, make<3>};

}  // namespace

const Preparation* planesFor(const Call& call, int index) {
  const Tensor& input = call.inputs[index];
  if (ops::precisionOf(call.attributes) == ops::Precision::f32) return &ThreePlanes;
  return input.dtype == Dtype::bf16 && input[1] % 8 == 0 ? nullptr : &OnePlane;
}

Planes planesOf(const Call& call, int index) {
  const Tensor& input = call.inputs[index];
  if (!call.prepared[index]) return {dataOf<bf16>(input), input[1], 0};
  const int64_t width = paddedWidth(input[1]);
  return {reinterpret_cast<const bf16*>(call.prepared[index]), width, input[0] * width};
}

}  // namespace selscan::cuda
