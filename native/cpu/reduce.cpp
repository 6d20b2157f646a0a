// Sums over elements and over rows, and the broadcast that is their gradient. See lib/ops/reduce.ts.
//
// Blocks of 4096 elements (or 64 rows × 256 columns) over the threads, each summed in f64 in eight lanes; the blocks' sums
// are then added in rising order. Products of two f32 are exact in f64, so all instruction sets give the same bits.
// Bound by memory: two f64 additions a cycle are faster than one thread reads.
#include <algorithm>

#include "core/dims.h"
#include "core/kernel.h"
#include "cpu/threads.h"

#define EACH_ISA "cpu/reduce.cpp"
#include "cpu/each_isa.h"

#ifdef ISA
namespace selscan::ISA {
namespace {

constexpr int64_t Block = 4096, RowBlock = 64, ColumnBlock = 256;

template <bool Squares>
double blockSum(const float* x, int64_t n) {
  double lanes[8] = {};
  int64_t i = 0;
  for (; i + 8 <= n; i += 8)
    for (int lane = 0; lane < 8; lane++) {
      const double value = x[i + lane];
      lanes[lane] += Squares ? value * value : value;
    }
  for (int lane = 0; i < n; i++, lane++) lanes[lane] += Squares ? double{x[i]} * double{x[i]} : double{x[i]};
  return ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
}

template <bool Squares>
void total(const Call& call) {
  const auto [x] = call.in<1>();
  const auto [y] = call.out<1>();
  if (!y) return;
  const int64_t count = x.elements(), blocks = (count + Block - 1) / Block;
  const float* from = x.f32();
  double* partial = reinterpret_cast<double*>(call.workspace);
  cpu::parallel(blocks, [=](int64_t block) {
    const int64_t begin = block * Block, rest = count - begin;
    partial[block] = blockSum<Squares>(from + begin, rest < Block ? rest : Block);
  });
  double all = 0;
  for (int64_t block = 0; block < blocks; block++) all += partial[block];
  *y.f32() = static_cast<float>(all);
}

}  // namespace

void sumAll(const Call& call) { total<false>(call); }
void sumSquares(const Call& call) { total<true>(call); }

void sumRows(const Call& call) {
  const auto [x] = call.in<1>();
  const auto [y] = call.out<1>();
  if (!y) return;
  const int64_t rows = x[0], dim = x[1];
  const int64_t rowBlocks = (rows + RowBlock - 1) / RowBlock, columnBlocks = (dim + ColumnBlock - 1) / ColumnBlock;
  const float* from = x.f32();
  double* partial = reinterpret_cast<double*>(call.workspace);  // (row blocks, dim)
  cpu::parallel(rowBlocks * columnBlocks, [=](int64_t task) {
    const int64_t block = task / columnBlocks, left = task % columnBlocks * ColumnBlock;
    const int64_t width = dim - left < ColumnBlock ? dim - left : ColumnBlock;
    const int64_t end = (block + 1) * RowBlock < rows ? (block + 1) * RowBlock : rows;
    double* sums = partial + block * dim + left;
    for (int64_t i = 0; i < width; i++) sums[i] = 0;
    for (int64_t row = block * RowBlock; row < end; row++) {
      const float* line = from + row * dim + left;
      for (int64_t i = 0; i < width; i++) sums[i] += line[i];
    }
  });
  float* to = y.f32();
  cpu::parallel(columnBlocks, [=](int64_t task) {
    const int64_t left = task * ColumnBlock, right = left + ColumnBlock < dim ? left + ColumnBlock : dim;
    for (int64_t i = left; i < right; i++) {
      double all = 0;
      for (int64_t block = 0; block < rowBlocks; block++) all += partial[block * dim + i];
      to[i] = static_cast<float>(all);
    }
  });
}

void broadcast(const Call& call) {
  const auto [y] = call.out<1>();
  if (!y) return;
  const float value = *call.inputs[0].f32();
  const int64_t count = y.elements();
  float* to = y.f32();
  cpu::parallel((count + Block - 1) / Block, [=](int64_t block) {
    const int64_t end = (block + 1) * Block < count ? (block + 1) * Block : count;
    for (int64_t i = block * Block; i < end; i++) to[i] = value;
  });
}

}  // namespace selscan::ISA
#else
namespace selscan::cpu {
static size_t elementBlocks(const Call& call) {  // one f64 for each block of 4096
  return static_cast<size_t>((call.inputs[0].elements() + 4095) / 4096) * sizeof(double);
}
static size_t rowBlocks(const Call& call) {  // one line of f64 for each block of 64 rows
  const auto [x] = call.in<1>();
  return static_cast<size_t>((x[0] + 63) / 64 * x[1]) * sizeof(double);
}
KERNEL(sum, cpu, "x -> y", .run = DISPATCH(sumAll),
       .limit = [](const Call& call) { return dimsMismatch(call, {"..."}, {""}); }, .workspaceBytes = elementBlocks)
KERNEL(sumSquares, cpu, "x -> y", .run = DISPATCH(sumSquares),
       .limit = [](const Call& call) { return dimsMismatch(call, {"..."}, {""}); }, .workspaceBytes = elementBlocks)
KERNEL(sumRows, cpu, "x -> y", .run = DISPATCH(sumRows),
       .limit = [](const Call& call) { return dimsMismatch(call, {"rows dim"}, {"dim"}); }, .workspaceBytes = rowBlocks)
KERNEL(broadcast, cpu, "x -> y; rows", .run = DISPATCH(broadcast),
       .limit = [](const Call& call) { return dimsMismatch(call, {""}, {"rows"}, "rows"); })
KERNEL(broadcastLike, cpu, "x like -> y", .run = DISPATCH(broadcast),
       .limit = [](const Call& call) { return dimsMismatch(call, {"", "..."}, {"..."}); })
}  // namespace selscan::cpu
#endif
