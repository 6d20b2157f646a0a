// Vectors of 2 to 16 bytes in one access, and activations as f32 whatever they are stored as.
#pragma once
#include "cuda/ptx.cuh"

namespace selscan::cuda {

using bf16 = __nv_bfloat16;

__device__ __forceinline__ float toFloat(float x) { return x; }
__device__ __forceinline__ float toFloat(bf16 x) { return __bfloat162float(x); }
template <class T>
__device__ __forceinline__ T fromFloat(float x) {
  if constexpr (sizeof(T) == 2) return __float2bfloat16_rn(x);
  else return x;
}

// What one access of N elements moves; the address must be a multiple of its size.
template <class T, int N>
struct alignas(sizeof(T) * N) Vec {
  T at[N];
};

template <int N, class T>
__device__ __forceinline__ void loadVec(const T* from, float (&to)[N]) {
  const Vec<T, N> v = *reinterpret_cast<const Vec<T, N>*>(from);
#pragma unroll
  for (int i = 0; i < N; i++) to[i] = toFloat(v.at[i]);
}
template <int N, class T>
__device__ __forceinline__ Vec<T, N> vecOf(const float (&from)[N]) {
  Vec<T, N> v;
#pragma unroll
  for (int i = 0; i < N; i++) v.at[i] = fromFloat<T>(from[i]);
  return v;
}
template <int N, class T>
__device__ __forceinline__ void storeVec(T* to, const float (&from)[N]) {
  *reinterpret_cast<Vec<T, N>*>(to) = vecOf<N, T>(from);
}

// To global memory in one access for certain: nvcc takes the store of a Vec apart and in large kernels leaves it in pieces, which
// the PTX shows (st.global.u16) and no message tells.
template <class T, int N>
__device__ __forceinline__ void storeWhole(T* to, const Vec<T, N>& v) {
#ifdef __CUDACC__
  if constexpr (sizeof(v) == 16) return __stwb(reinterpret_cast<uint4*>(to), *reinterpret_cast<const uint4*>(&v));
  if constexpr (sizeof(v) == 8) return __stwb(reinterpret_cast<uint2*>(to), *reinterpret_cast<const uint2*>(&v));
#endif
  *reinterpret_cast<Vec<T, N>*>(to) = v;
}
template <int N, class T>
__device__ __forceinline__ void storeGlobal(T* to, const float (&from)[N]) {
  storeWhole(to, vecOf<N, T>(from));
}

}  // namespace selscan::cuda
