// Every kernel of the matrix product that this processor can run, and AMX on emulated tiles, against sums in f64.
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "check.h"
#include "cpu/gemm_kernels.h"

namespace selscan::test {
namespace {

using namespace cpu;

struct Aligned {
  alignas(64) std::byte bytes[64];
};

struct Case {
  Precision precision;
  int64_t rows, inner, columns;
  bool turned;  // A and B are stored with k as their outer dimension, and inner one, instead of inner and outer
};

// C by the kernel, block by block, between two rows of guards that it must leave alone.
std::vector<float> multiplied(BlockProduct run, const Case& c, const std::vector<float>& a, const std::vector<float>& b) {
  const Panels shape{c.precision, c.inner, c.columns};
  std::vector<Aligned> room(shape.sizeBytes() / sizeof(Aligned));
  std::memset(room.data()->bytes, 0xff, shape.sizeBytes());  // NaN wherever packing leaves something out
  const auto* from = reinterpret_cast<const std::byte*>(b.data());
  const Right right{from, Dtype::f32, c.turned ? 1 : c.columns, c.turned ? c.inner : 1};
  const Panels panels = packPanels(right, shape, room.data()->bytes);
  const Left left{a.data(), c.turned ? 1 : c.inner, c.turned ? c.rows : 1};
  std::vector<float> out((c.rows + 2) * c.columns, 7.0f);
  const Product product{left, panels, out.data() + c.columns, c.columns};
  for (int64_t row = 0; row < c.rows; row += RowBlock)
    for (int64_t panel = 0; panel < panels.count(); panel += 3)
      run(product, {row, std::min(row + RowBlock, c.rows), panel, std::min(panel + 3, panels.count())});
  return out;
}

void compare(const char* kernel, BlockProduct run, const Case& c) {
  std::mt19937 random(static_cast<unsigned>(c.rows * 31 + c.inner * 7 + c.columns));
  std::normal_distribution<float> normal;
  std::vector<float> a(c.rows * c.inner), b(c.inner * c.columns);
  for (float& value : a) value = normal(random);
  for (float& value : b) value = normal(random);
  const std::vector<float> out = multiplied(run, c, a, b);
  const auto seen = [&](float value) { return c.precision == Precision::bf16 ? fromBf16(toBf16(value)) : value; };
  double worst = 0;
  for (int64_t m = 0; m < c.rows; m++)
    for (int64_t n = 0; n < c.columns; n++) {
      double sum = 0, size = 0;
      for (int64_t k = 0; k < c.inner; k++) {
        const double term = static_cast<double>(seen(a[c.turned ? k * c.rows + m : m * c.inner + k])) *
                            seen(b[c.turned ? n * c.inner + k : k * c.columns + n]);
        sum += term;
        size += std::fabs(term);
      }
      const double error = std::fabs(sum - out[(m + 1) * c.columns + n]) / (size + 1e-30);
      if (!(error <= worst)) worst = error;
    }
  // Rounding errors of n f32 additions, as a share of the sum of magnitudes: ½ ulp each at most, far less together.
  CHECK(worst < 2e-6, kernel, c.rows, c.inner, c.columns, c.turned, worst);
  for (int64_t n = 0; n < c.columns; n++) CHECK(out[n] == 7.0f && out[(c.rows + 1) * c.columns + n] == 7.0f, kernel, n);
}

void compareAll(const char* kernel, BlockProduct run, Precision precision) {
  for (const int64_t rows : {1, 2, 5, 7, 12, 13, 31, 33, 97})
    for (const int64_t inner : {1, 2, 15, 17, 33, 256, 513, 1100})
      for (const int64_t columns : {1, 16, 17, 31, 64, 100})
        for (const bool turned : {false, true}) compare(kernel, run, {precision, rows, inner, columns, turned});
}

}  // namespace

TEST("the f32 product chosen for this processor sums what it should") {
  compareAll("f32", blockProduct(Precision::f32), Precision::f32);
}

TEST("the bf16 product chosen for this processor sums what it should") {
  compareAll("bf16", blockProduct(Precision::bf16), Precision::bf16);
}

TEST("the AMX product sums what it should on emulated tiles") {
  compareAll("emulated AMX", productTilesEmulated, Precision::bf16);
}

TEST("a row alone has the bits that it has among many, however C is cut") {
  const int64_t inner = 2 * PackedSteps + 37, columns = 40, all = 130;  // A is packed in more than one part in either precision
  std::vector<float> a(all * inner), b(inner * columns);
  for (size_t i = 0; i < a.size(); i++) a[i] = std::sin(static_cast<float>(i));
  for (size_t i = 0; i < b.size(); i++) b[i] = std::cos(static_cast<float>(i));
  for (const Precision precision : {Precision::f32, Precision::bf16}) {
    const Panels shape{precision, inner, columns};
    std::vector<Aligned> room(shape.sizeBytes() / sizeof(Aligned));
    const Panels panels = packPanels({reinterpret_cast<const std::byte*>(b.data()), Dtype::f32, columns, 1}, shape, room.data()->bytes);
    std::vector<float> among(all * columns), alone(all * columns);
    multiply({{a.data(), inner, 1}, panels, among.data(), columns}, all);
    for (const int64_t rows : {1, 2, 7, 8, 11, 13, 33, 97})
      for (int64_t row = 0; row + rows <= all; row += 29) {
        multiply({{a.data() + row * inner, inner, 1}, panels, alone.data(), columns}, rows);
        CHECK(std::memcmp(alone.data(), among.data() + row * columns, rows * columns * sizeof(float)) == 0, rows, row);
      }
  }
}

TEST("a sum that continues in C has the bits of one that did not stop") {
  const int64_t rows = 5, inner = 1100, columns = 40, cut = 512;
  std::vector<float> a(rows * inner), b(inner * columns);
  for (size_t i = 0; i < a.size(); i++) a[i] = std::sin(static_cast<float>(i));
  for (size_t i = 0; i < b.size(); i++) b[i] = std::cos(static_cast<float>(i));
  for (const Precision precision : {Precision::f32, Precision::bf16}) {
    const std::vector<float> whole = multiplied(blockProduct(precision), {precision, rows, inner, columns, false}, a, b);
    std::vector<Aligned> room(slabBytes(precision, rows, inner, columns) / sizeof(Aligned));
    std::vector<float> out(rows * columns);
    const Product product{{a.data(), inner, 1}, {precision, inner, columns}, out.data(), columns};
    static_assert(SlabRows == cut);
    multiplySlabs(product, {reinterpret_cast<const std::byte*>(b.data()), Dtype::f32, columns, 1}, rows, room.data()->bytes);
    CHECK(std::memcmp(out.data(), whole.data() + columns, out.size() * sizeof(float)) == 0);
  }
}

}  // namespace selscan::test
