// Every kernel of the matrix product that this processor can run, and AMX on emulated tiles, against sums in f64.
#include <algorithm>
#include <cfloat>
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
  const bool halfA = c.precision == Precision::bf16, halfB = halfA || c.precision == Precision::bf16x2;
  const auto seen = [](float value, bool half) { return half ? fromBf16(toBf16(value)) : value; };
  // Rounding errors of n f32 additions, as a share of the sum of magnitudes: ½ ulp each at most, far less together; and a split's own.
  const double most = 2e-6 + (c.precision == Precision::bf16x3 ? 0x1p-15 : c.precision == Precision::bf16x2 ? 0x1p-17 : 0);
  double worst = 0;
  for (int64_t m = 0; m < c.rows; m++)
    for (int64_t n = 0; n < c.columns; n++) {
      double sum = 0, size = 0;
      for (int64_t k = 0; k < c.inner; k++) {
        const double term = static_cast<double>(seen(a[c.turned ? k * c.rows + m : m * c.inner + k], halfA)) *
                            seen(b[c.turned ? n * c.inner + k : k * c.columns + n], halfB);
        sum += term;
        size += std::fabs(term);
      }
      const double error = std::fabs(sum - out[(m + 1) * c.columns + n]) / (size + 1e-30);
      if (!(error <= worst)) worst = error;
    }
  CHECK(worst < most, kernel, c.rows, c.inner, c.columns, c.turned, worst);
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
  for (const Precision precision : {Precision::bf16, Precision::bf16x3, Precision::bf16x2})
    compareAll("emulated AMX", productTilesEmulated, precision);
}

// The split as gemm.h has it, in plain f32: of 32 k the three products in their order, each the even k and the odd ones in rising order.
float splitSum(const std::vector<float>& a, const std::vector<float>& b) {
  const float greatest = fromBf16(0x7f7f);
  const auto high = [&](float x) { return fromBf16(toBf16(std::min(std::max(x, -greatest), greatest))); };
  const auto low = [&](float x) { return fromBf16(toBf16(x - high(x))); };
  float sum = 0;
  for (size_t group = 0; group < a.size(); group += 32) {
    const auto add = [&](const auto& partOfA, const auto& partOfB) {
      float halves[2] = {};
      for (size_t k = group; k < std::min(group + 32, a.size()); k++) halves[k % 2] += partOfA(a[k]) * partOfB(b[k]);
      sum += halves[0] + halves[1];
    };
    add(low, high);
    add(high, high);
    add(high, low);
  }
  return sum;
}

TEST("every element of a split product is one sum in one order, wherever it lies and however its sides are stored") {
  for (const int64_t inner : {1, 31, 32, 33, 64, 700, 2100})
    for (const int64_t rows : {1, 8, 33})
      for (const bool turned : {false, true}) {
        const int64_t columns = 18;
        std::vector<float> a(rows * inner), b(inner * columns), line(inner), column(inner);
        for (size_t i = 0; i < a.size(); i++) a[i] = std::sin(static_cast<float>(i));
        for (size_t i = 0; i < b.size(); i++) b[i] = std::cos(static_cast<float>(i));
        const std::vector<float> out = multiplied(productTilesEmulated, {Precision::bf16x3, rows, inner, columns, turned}, a, b);
        for (const int64_t m : {int64_t{0}, rows - 1})
          for (const int64_t n : {0, 15, 17}) {
            for (int64_t k = 0; k < inner; k++) {
              line[k] = a[turned ? k * rows + m : m * inner + k];
              column[k] = b[turned ? n * inner + k : k * columns + n];
            }
            CHECK(out[(m + 1) * columns + n] == splitSum(line, column), inner, rows, turned, m, n);
          }
      }
}

TEST("the bound of a split product is nearly reached, and no product of it can be left out") {
  // x = 1 + 2⁻⁸ − 2⁻¹⁷ − 2⁻²³: h = 1, l = 2⁻⁸ − 2⁻¹⁶, and nearly 2⁻¹⁷ is lost.
  const float x = 1 + 0x1p-8f - 0x1p-17f - 0x1p-23f;
  for (const int64_t inner : {1, 31, 32, 33, 64, 700}) {
    const std::vector<float> ones(inner, x);
    const double exact = static_cast<double>(x) * x * static_cast<double>(inner);
    const auto errorOf = [&](Precision precision) {
      return std::fabs(multiplied(productTilesEmulated, {precision, 1, inner, 1, false}, ones, ones)[1] / exact - 1);
    };
    const double additions = (3 * ((inner + 31) / 32) + 17) * 0x1p-24, both = errorOf(Precision::bf16x3);
    CHECK(both < 0x1p-15 + additions && both > 0.97 * 0x1p-15 - additions, inner, both);
    CHECK(errorOf(Precision::bf16) > 100 * 0x1p-15, inner);  // of one product: 2 · 2⁻⁸
  }
}

TEST("what is not finite, too large for bf16 or too small comes through a split as in f32") {
  const float infinity = INFINITY, greatest = FLT_MAX;
  const auto times = [](float x, float y) {
    return multiplied(productTilesEmulated, {Precision::bf16x3, 1, 1, 1, false}, {x}, {y})[1];
  };
  const auto near = [](float got, double want) { return std::fabs(got - want) <= 0x1p-15 * std::fabs(want); };
  for (const float sign : {1.0f, -1.0f})
    for (const float y : {1.0f, 1 + 0x1p-10f, 1 - 0x1p-10f, 0x1p-100f, 3e38f, greatest, infinity}) {
      CHECK(times(sign * infinity, y) == sign * infinity && times(y, sign * infinity) == sign * infinity, y);
      CHECK(std::isnan(times(NAN, sign * y)) && std::isnan(times(sign * y, NAN)), y);
    }
  CHECK(std::isnan(times(infinity, 0.0f)) && std::isnan(times(0.0f, infinity)) && std::isnan(times(NAN, 0.0f)));
  CHECK(near(times(3.4e38f, 1.0f), 3.4e38f) && near(times(-0.999f, 3.4e38f), -0.999 * 3.4e38f) && near(times(greatest, 0.5f), 0.5 * greatest));
  CHECK(times(2.0f, greatest) == infinity && !std::isfinite(times(3e38f, -3e38f)));
  for (const float tiny : {0x1.234568p-111f, 0x1.234568p-120f, 0x1.234568p-126f, 0x1p-140f})
    CHECK(std::fabs(times(tiny, 1.0f) - tiny) <= 0x1p-126f, tiny);
  CHECK(times(0x1.01p-130f, 0.0f) == 0 && times(-0.0f, 5.0f) == 0);
}

TEST("a split product of a bf16 weight has the bits of one whose lower halves are zeros") {
  const int64_t rows = 7, inner = 333, columns = 33;
  std::vector<float> a(rows * inner), b(inner * columns);
  for (size_t i = 0; i < a.size(); i++) a[i] = std::sin(static_cast<float>(i));
  for (size_t i = 0; i < b.size(); i++) b[i] = fromBf16(toBf16(std::cos(static_cast<float>(i))));
  for (const bool turned : {false, true})
    CHECK(multiplied(productTilesEmulated, {Precision::bf16x2, rows, inner, columns, turned}, a, b) ==
              multiplied(productTilesEmulated, {Precision::bf16x3, rows, inner, columns, turned}, a, b),
          turned);
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
