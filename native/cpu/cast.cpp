// Between f32 and bf16, in both directions. See lib/ops/cast.ts.
//
// Blocks of 4096 elements over the threads; bound by memory.
#include <cstring>

#include "core/kernel.h"
#include "cpu/threads.h"
#include "ops/cast.h"

#define EACH_ISA "cpu/cast.cpp"
#include "cpu/each_isa.h"

#ifdef ISA
namespace selscan::ISA {

// Elements [begin, end). Whole vectors first; the rest one by one, since half vectors are only read and written whole.
static void castBlock(const Tensor& x, const Tensor& y, int64_t begin, int64_t end) {
  if (x.dtype == y.dtype) {
    const size_t size = sizeBytes(x.dtype);
    const auto at = static_cast<size_t>(begin), count = static_cast<size_t>(end - begin);
    std::memcpy(y.data + at * size, x.data + at * size, count * size);
  } else if (y.dtype == Dtype::bf16) {
    int64_t i = begin;
    for (; i + Lanes <= end; i += Lanes) storeBf16(y.half() + i, load(x.f32() + i));
    for (; i < end; i++) y.half()[i] = toBf16(x.f32()[i]);
  } else {
    int64_t i = begin;
    for (; i + Lanes <= end; i += Lanes) store(y.f32() + i, loadBf16(x.half() + i));
    for (; i < end; i++) y.f32()[i] = fromBf16(x.half()[i]);
  }
}

void cast(const Call& call) {
  const auto [x, y] = std::array{call.inputs[0], call.outputs[0]};
  if (!y) return;
  constexpr int64_t Block = 4096;  // 24 KB read and written: stays in L1
  const int64_t count = x.elements();
  cpu::parallel((count + Block - 1) / Block, [&, x = x, y = y](int64_t block) {
    castBlock(x, y, block * Block, count < (block + 1) * Block ? count : (block + 1) * Block);
  });
}

}  // namespace selscan::ISA
#else
namespace selscan::cpu {
KERNEL(cast, cpu, "x -> y; dtype", .run = DISPATCH(cast), .limit = ops::castLimit)
}  // namespace selscan::cpu
#endif
