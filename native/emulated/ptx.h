// The instructions that our kernels write as PTX, for the emulated device; cuda/ptx.cuh includes this file on the host.
#pragma once
#include <math.h>

#include <cstddef>
#include <cstdint>

#include "emulated/language.h"

namespace selscan::emulator {

// The block's dynamic shared memory, 128-byte aligned, filled with 0xFF before every block.
std::byte* sharedMemory();
void waitForCopies(int pending);

}  // namespace selscan::emulator

namespace selscan::emulated {

// ex2, lg2, rcp, rsqrt and tanh .approx: here exact, so the device's own error is for tolerances to allow.
inline float exp2Fast(float x) { return exp2f(x); }
inline float log2Fast(float x) { return log2f(x); }
inline float reciprocalFast(float x) { return 1.0f / x; }
inline float rsqrtFast(float x) { return 1.0f / sqrtf(x); }
inline float tanhFast(float x) { return tanhf(x); }

// cp.async.cg of 16 bytes and cp.async.ca of 8 and 4, from global to shared memory. Not valid: zeros are written and nothing is
// read.
void copyAsync16(void* shared, const void* global, bool valid);
void copyAsync8(void* shared, const void* global, bool valid);
void copyAsync4(void* shared, const void* global, bool valid);
// cp.async.commit_group and wait_group: of this thread's groups all but the `pending` latest have arrived.
void commitCopies();
template <int N>
void waitCopies() {
  emulator::waitForCopies(N);
}

// ldmatrix.sync.aligned.m8n8.x4 and .x2 [.trans] .shared.b16; lane 8i + r gives the address of row r of matrix i.
void loadMatrix4(uint32_t (&r)[4], const void* sharedRow);
void loadMatrix4Transposed(uint32_t (&r)[4], const void* sharedRow);
void loadMatrix2(uint32_t (&r)[2], const void* sharedRow);
void loadMatrix2Transposed(uint32_t (&r)[2], const void* sharedRow);

// d += a b: mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32.
void multiplyAccumulate(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);

// griddepcontrol.wait and .launch_dependents: kernels run one after the other here.
inline void waitForPredecessor() {}
inline void releaseSuccessor() {}

}  // namespace selscan::emulated

// SHARED(Type, name): the block's dynamic shared memory as Type*.
#define SHARED(Type, name) Type* name = reinterpret_cast<Type*>(::selscan::emulator::sharedMemory())
