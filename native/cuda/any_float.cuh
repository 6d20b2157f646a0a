// A tensor of f32 or bf16 whose dtype is looked at when it is read: for what happens once per element of a product, where a
// kernel for every mixture of dtypes would be dozens.
#pragma once
#include "cuda/launch.cuh"

namespace selscan::cuda {

struct AnyFloat {
  std::byte* data = nullptr;  // null: absent
  bool half = false;

  AnyFloat() = default;
  explicit AnyFloat(const Tensor& tensor) : data(tensor.data), half(tensor.dtype == Dtype::bf16) {}
  explicit AnyFloat(float* data) : data(reinterpret_cast<std::byte*>(data)) {}
  AnyFloat from(int64_t element) const {
    AnyFloat rest = *this;
    if (data) rest.data += element * (half ? 2 : 4);
    return rest;
  }
  __host__ __device__ explicit operator bool() const { return data != nullptr; }

  // N elements from `at` on, whose address is a multiple of their size.
  template <int N>
  __device__ __forceinline__ void load(int64_t at, float (&to)[N]) const {
    if (half) loadVec<N>(reinterpret_cast<const bf16*>(data) + at, to);
    else loadVec<N>(reinterpret_cast<const float*>(data) + at, to);
  }
  template <int N>
  __device__ __forceinline__ void store(int64_t at, const float (&from)[N]) const {
    if (half) storeGlobal<N>(reinterpret_cast<bf16*>(data) + at, from);
    else storeGlobal<N>(reinterpret_cast<float*>(data) + at, from);
  }
};

}  // namespace selscan::cuda
