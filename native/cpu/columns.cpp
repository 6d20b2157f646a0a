// Moving columns and rows about: split, concat, gatherRows and its gradient. See lib/ops/columns.ts.
//
// Blocks of rows over the threads; copies, bound by memory. scatterRows walks all picks once for each block of 16 rows, so
// that rows picked several times add up in the order of the picks whatever the number of threads.
#include <algorithm>
#include <cstring>

#include "core/kernel.h"
#include "cpu/threads.h"
#include "ops/columns.h"

namespace selscan::cpu {
namespace {

constexpr int64_t RowBlock = 16;

// body(row) for every row, in blocks over the threads.
template <class Body>
void overRows(int64_t rows, Body body) {
  parallel((rows + RowBlock - 1) / RowBlock, [=](int64_t block) {
    const int64_t end = std::min(rows, (block + 1) * RowBlock);
    for (int64_t row = block * RowBlock; row < end; row++) body(row);
  });
}

void copy(float* to, const float* from, int64_t n) { std::memcpy(to, from, static_cast<size_t>(n) * sizeof(float)); }
void zero(float* to, int64_t n) { std::memset(to, 0, static_cast<size_t>(n) * sizeof(float)); }

void split(const Call& call) {
  const auto [x] = call.in<1>();
  const auto [a, b] = call.out<2>();
  const int64_t width = x[1], first = static_cast<int64_t>(call.attributes.number("first"));
  const float* from = x.f32();
  float *left = a.f32(), *right = b.f32();
  overRows(x[0], [=](int64_t row) {
    if (left) copy(left + row * first, from + row * width, first);
    if (right) copy(right + row * (width - first), from + row * width + first, width - first);
  });
}

void concat(const Call& call) {
  const auto [a, b] = call.in<2>();
  const auto [y] = call.out<1>();
  if (!y) return;
  const int64_t width = y[1], first = static_cast<int64_t>(call.attributes.number("first")), second = width - first;
  const float *left = a.f32(), *right = b.f32();
  float* to = y.f32();
  overRows(y[0], [=](int64_t row) {
    float* line = to + row * width;
    left ? copy(line, left + row * first, first) : zero(line, first);
    right ? copy(line + first, right + row * second, second) : zero(line + first, second);
  });
}

void gatherRows(const Call& call) {
  const auto [x, index] = call.in<2>();
  const auto [y] = call.out<1>();
  if (!y) return;
  const int64_t dim = x[1];
  const float* from = x.f32();
  const int32_t* picks = index.i32();
  float* to = y.f32();
  overRows(y[0], [=](int64_t pick) {
    picks[pick] < 0 ? zero(to + pick * dim, dim) : copy(to + pick * dim, from + picks[pick] * dim, dim);
  });
}

void scatterRows(const Call& call) {
  const auto [dy, index] = call.in<2>();
  const auto [dx] = call.out<1>();
  if (!dx) return;
  const int64_t rows = dx[0], dim = dx[1], count = dy[0];
  const float* from = dy.f32();
  const int32_t* picks = index.i32();
  float* to = dx.f32();
  parallel((rows + RowBlock - 1) / RowBlock, [=](int64_t block) {
    const int64_t begin = block * RowBlock, end = std::min(rows, begin + RowBlock);
    zero(to + begin * dim, (end - begin) * dim);
    for (int64_t pick = 0; pick < count; pick++) {
      if (picks[pick] < begin || picks[pick] >= end) continue;
      float* line = to + picks[pick] * dim;
      const float* add = from + pick * dim;
      for (int64_t i = 0; i < dim; i++) line[i] += add[i];
    }
  });
}

KERNEL(split, cpu, "x -> a b; first", .run = split, .limit = ops::splitLimit)
KERNEL(concat, cpu, "a? b? -> y; first second", .run = concat, .limit = ops::concatLimit)
KERNEL(gatherRows, cpu, "x index -> y", .run = gatherRows, .limit = ops::gatherLimit, .checkInputs = ops::checkGather)
KERNEL(scatterRows, cpu, "dy index -> dx; rows", .run = scatterRows, .limit = ops::scatterLimit, .checkInputs = ops::checkScatter)

}  // namespace
}  // namespace selscan::cpu
