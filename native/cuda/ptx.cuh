// The only inline PTX: approximate functions, asynchronous copies, matrix fragments and products, dependent launches. On the
// host (device `emulated`) the same functions come from native/emulated/ptx.h.
#pragma once
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

#ifndef __CUDACC__
#include "emulated/ptx.h"
#else

// Dynamic shared memory, the only kind that kernels use: the launch names its size.
#define SHARED(Type, name)                                        \
  extern __shared__ __align__(128) unsigned char sharedMemory[]; \
  Type* const name = reinterpret_cast<Type*>(sharedMemory)

namespace selscan::cuda {

// 2^x, log2 x, 1/x, 1/√x by the special function unit: relative error about 2⁻²², denormals are zero.
__device__ __forceinline__ float exp2Fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float log2Fast(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float reciprocalFast(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float rsqrtFast(float x) {
  float y;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ uint32_t sharedAddress(const void* shared) { return static_cast<uint32_t>(__cvta_generic_to_shared(shared)); }

// Copies of 16, 8 or 4 bytes from global to shared memory that go past the registers; both addresses are aligned to the size.
// Not `valid`: nothing is read and zeros are written.
__device__ __forceinline__ void copyAsync16(void* shared, const void* global, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(sharedAddress(shared)), "l"(global), "r"(valid ? 16 : 0) : "memory");
}
__device__ __forceinline__ void copyAsync8(void* shared, const void* global, bool valid) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(sharedAddress(shared)), "l"(global), "r"(valid ? 8 : 0) : "memory");
}
__device__ __forceinline__ void copyAsync4(void* shared, const void* global, bool valid) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(sharedAddress(shared)), "l"(global), "r"(valid ? 4 : 0) : "memory");
}
// Closes the group of this thread's copies since the last one, and waits until at most N groups are under way. What other
// threads copied is there after a barrier.
__device__ __forceinline__ void commitCopies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N>
__device__ __forceinline__ void waitCopies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// 8 × 8 matrices of 16-bit elements from shared memory into fragments; lane 8·i + r gives the address of row r of matrix i.
__device__ __forceinline__ void loadMatrix4(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(sharedAddress(row))
               : "memory");
}
__device__ __forceinline__ void loadMatrix4Transposed(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(sharedAddress(row))
               : "memory");
}
__device__ __forceinline__ void loadMatrix2(uint32_t (&r)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];" : "=r"(r[0]), "=r"(r[1]) : "r"(sharedAddress(row)) : "memory");
}
__device__ __forceinline__ void loadMatrix2Transposed(uint32_t (&r)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];" : "=r"(r[0]), "=r"(r[1]) : "r"(sharedAddress(row)) : "memory");
}

// d += a·b for a 16 × 16, b 16 × 8 in bf16 and d in f32, spread over the warp (PTX: mma.m16n8k16).
__device__ __forceinline__ void multiplyAccumulate(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

}  // namespace selscan::cuda
#endif
