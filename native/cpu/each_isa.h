// Compiles the including file once for each instruction set, each time inside its own namespace.
//
//   #include "core/kernel.h"          // everything that is not ours alone comes first, compiled portably
//   #define EACH_ISA "cpu/norm.cpp"
//   #include "cpu/each_isa.h"
//   #ifdef ISA
//   namespace selscan::ISA { …kernels over F32 of cpu/simd.h… }
//   #else
//   KERNEL(rmsNorm, cpu, "…", .run = DISPATCH(forward))
//   #endif
//
// The target pragma stands after all includes: a standard-library inline function compiled for AVX-512 could otherwise be
// the copy that the linker keeps for portable code, which then dies on an older machine.
//
// No include guard: each kernel file includes it once.
#ifndef ISA
#include "cpu/isa.h"
#include "cpu/simd.h"

#define ISA portable
#include "cpu/simd_math.h"
#include EACH_ISA
#undef ISA

#if SELSCAN_X86
SELSCAN_PUSH_TARGET_AVX2
#define ISA avx2
#define SELSCAN_AVX2 1
#include "cpu/simd_math.h"
#include EACH_ISA
#undef SELSCAN_AVX2
#undef ISA
SELSCAN_POP_TARGET

SELSCAN_PUSH_TARGET_AVX512
#define ISA avx512
#define SELSCAN_AVX512 1
#include "cpu/simd_math.h"
#include EACH_ISA
#undef SELSCAN_AVX512
#undef ISA
SELSCAN_POP_TARGET
#endif
#endif
