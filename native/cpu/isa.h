// Which instruction sets this processor has, and which of them the kernels use.
#pragma once

#if (defined(__x86_64__) || defined(_M_X64)) && (defined(__GNUC__) || defined(__clang__))
#define SELSCAN_X86 1
#if !defined(__clang__)
// GCC 12 warns of the undefined vectors inside its own intrinsics.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#if !defined(__clang__)
#pragma GCC diagnostic pop
#endif
#else
#define SELSCAN_X86 0
#endif

// Before a loop over registers, whose count is known: unrolled it has no memory.
#if defined(__clang__)
#define SELSCAN_UNROLL _Pragma("clang loop unroll(full)")
#else
#define SELSCAN_UNROLL _Pragma("GCC unroll 32")
#endif

// clang gives a target to functions, GCC to everything that follows a pragma.
#if defined(__clang__)
#define SELSCAN_PUSH_TARGET_AVX2 \
  _Pragma("clang attribute push(__attribute__((target(\"avx2,fma,f16c,bmi2\"))), apply_to = function)")
#define SELSCAN_PUSH_TARGET_AVX512 \
  _Pragma("clang attribute push(__attribute__((target(\"avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi2,prefer-256-bit\"))), apply_to = function)")
#define SELSCAN_PUSH_TARGET_AVX512BF16 \
  _Pragma("clang attribute push(__attribute__((target(\"avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c,bmi2\"))), apply_to = function)")
#define SELSCAN_PUSH_TARGET_AVXVNNI \
  _Pragma("clang attribute push(__attribute__((target(\"avx2,fma,f16c,bmi2,avxvnni\"))), apply_to = function)")
#define SELSCAN_PUSH_TARGET_AVX512VNNI \
  _Pragma("clang attribute push(__attribute__((target(\"avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c,bmi2\"))), apply_to = function)")
#define SELSCAN_PUSH_TARGET_AMX \
  _Pragma("clang attribute push(__attribute__((target(\"amx-tile,amx-bf16,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c,bmi2\"))), apply_to = function)")
#define SELSCAN_POP_TARGET _Pragma("clang attribute pop")
#else
#define SELSCAN_PUSH_TARGET_AVX2 _Pragma("GCC push_options") _Pragma("GCC target(\"avx2,fma,f16c,bmi2\")")
#define SELSCAN_PUSH_TARGET_AVX512 \
  _Pragma("GCC push_options") _Pragma("GCC target(\"avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi2,prefer-vector-width=512\")")
#define SELSCAN_PUSH_TARGET_AVX512BF16 \
  _Pragma("GCC push_options") _Pragma("GCC target(\"avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c,bmi2,prefer-vector-width=512\")")
#define SELSCAN_PUSH_TARGET_AVXVNNI _Pragma("GCC push_options") _Pragma("GCC target(\"avx2,fma,f16c,bmi2,avxvnni\")")
#define SELSCAN_PUSH_TARGET_AVX512VNNI \
  _Pragma("GCC push_options") _Pragma("GCC target(\"avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c,bmi2,prefer-vector-width=512\")")
#define SELSCAN_PUSH_TARGET_AMX \
  _Pragma("GCC push_options") _Pragma("GCC target(\"amx-tile,amx-bf16,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c,bmi2\")")
#define SELSCAN_POP_TARGET _Pragma("GCC pop_options")
#endif

namespace selscan::cpu {

// In rising order; each includes those before it. avx512bf16 and amx only differ in the products of `linear`.
enum class Isa { portable, avx2, avx512, avx512bf16, amx };

// The best the processor and the operating system allow, lowered by the environment variable SELSCAN_ISA
// (portable, avx2, avx512, avx512bf16, amx). Decided once.
Isa isa();
const char* name(Isa);

}  // namespace selscan::cpu

// The compiled copy of f for this processor.
#if SELSCAN_X86
#define FOR_THIS_PROCESSOR(f)                                                        \
  (::selscan::cpu::isa() >= ::selscan::cpu::Isa::avx512 ? ::selscan::avx512::f       \
   : ::selscan::cpu::isa() == ::selscan::cpu::Isa::avx2 ? ::selscan::avx2::f         \
                                                        : ::selscan::portable::f)
#else
#define FOR_THIS_PROCESSOR(f) ::selscan::portable::f
#endif

// The same of a kernel: a captureless lambda that converts to a function pointer.
#define DISPATCH(f) [](const ::selscan::Call& call) { FOR_THIS_PROCESSOR(f)(call); }
