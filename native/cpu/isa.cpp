#include "cpu/isa.h"

#include <cstdlib>
#include <cstring>

#if SELSCAN_X86 && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace selscan::cpu {

static constexpr const char* Names[] = {"portable", "avx2", "avx512", "avx512bf16", "amx"};
const char* name(Isa isa) { return Names[static_cast<int>(isa)]; }

#if SELSCAN_X86
static bool amxBf16() {
#if defined(__linux__)
  unsigned a, b, c, d;
  __asm__("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(7), "c"(0));
  if (!(d & (1u << 22)) || !(d & (1u << 24))) return false;  // amx-bf16, amx-tile
  // The kernel hands out tile registers only to processes that ask: arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA).
  return syscall(SYS_arch_prctl, 0x1023, 18) == 0;
#else
  return false;
#endif
}

static Isa best() {
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !__builtin_cpu_supports("bmi2")) return Isa::portable;
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") || !__builtin_cpu_supports("avx512dq") ||
      !__builtin_cpu_supports("avx512vl"))
    return Isa::avx2;
  if (!__builtin_cpu_supports("avx512bf16")) return Isa::avx512;
  return amxBf16() ? Isa::amx : Isa::avx512bf16;
}
#else
static Isa best() { return Isa::portable; }
#endif

static Isa decide() {
  const Isa top = best();
  const char* asked = std::getenv("SELSCAN_ISA");
  if (!asked) return top;
  for (int i = 0; i <= static_cast<int>(top); i++)
    if (std::strcmp(asked, Names[i]) == 0) return static_cast<Isa>(i);
  return top;
}

Isa isa() {
  static const Isa decided = decide();
  return decided;
}

}  // namespace selscan::cpu
