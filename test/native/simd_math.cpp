// cpu/simd.h and cpu/simd_math.h against libm in f64, on every instruction set this processor has.
#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "check.h"
#include "core/dtype.h"

#ifndef ISA
// What a compiled copy offers to the tests: each function over an array, by whole vectors and a tail.
namespace selscan::test {
struct Vector {
  const char* name;
  int lanes;
  void (*exp2)(const float*, float*, int64_t);
  void (*exp)(const float*, float*, int64_t);
  void (*log)(const float*, float*, int64_t);
  void (*log1p)(const float*, float*, int64_t);
  void (*softplus)(const float*, float*, int64_t);
  void (*sigmoid)(const float*, float*, int64_t);
  void (*round)(const float*, float*, int64_t);
  float (*sum)(const float*, int64_t);
  float (*maximum)(const float*);
  void (*fromBf16)(const uint16_t*, float*);
  void (*fromF16)(const uint16_t*, float*);
  void (*toBf16)(const float*, uint16_t*);
};
}  // namespace selscan::test
#endif

#define EACH_ISA "../../test/native/simd_math.cpp"
#include "cpu/each_isa.h"

#ifdef ISA
namespace selscan::ISA {
namespace {
#define OVER_ARRAY(f)                                                                                  \
  [](const float* x, float* y, int64_t n) {                                                            \
    int64_t i = 0;                                                                                     \
    for (; i + Lanes <= n; i += Lanes) store(y + i, f(load(x + i)));                                   \
    if (i < n) store(y + i, f(load(x + i, static_cast<int>(n - i))), static_cast<int>(n - i));          \
  }
const test::Vector Functions = {
    nullptr,
    Lanes,
    OVER_ARRAY(exp2),
    OVER_ARRAY(exp),
    OVER_ARRAY(log),
    OVER_ARRAY(log1p),
    OVER_ARRAY(softplus),
    OVER_ARRAY(sigmoid),
    OVER_ARRAY(round),
    [](const float* x, int64_t n) { return sum(x, n); },
    [](const float* x) { return maximum(load(x)); },
    [](const uint16_t* x, float* y) { store(y, loadBf16(x)); },
    [](const uint16_t* x, float* y) { store(y, loadF16(x)); },
    [](const float* x, uint16_t* y) { storeBf16(y, load(x)); },
};
#undef OVER_ARRAY
}  // namespace
test::Vector functions() { return Functions; }
}  // namespace selscan::ISA
#else
namespace selscan::test {
namespace {

std::vector<Vector> sets() {
  std::vector<Vector> list{portable::functions()};
  list.back().name = "portable";
#if SELSCAN_X86
  if (cpu::isa() >= cpu::Isa::avx2) {
    list.push_back(avx2::functions());
    list.back().name = "avx2";
  }
  if (cpu::isa() >= cpu::Isa::avx512) {
    list.push_back(avx512::functions());
    list.back().name = "avx512";
  }
#endif
  return list;
}

using Apply = void (*)(const float*, float*, int64_t);
constexpr float Infinity = std::numeric_limits<float>::infinity();
constexpr float NaN = std::numeric_limits<float>::quiet_NaN();

float apply(Apply f, float x) {
  float y;
  f(&x, &y, 1);
  return y;
}

// Evenly spread points and, beside them, random ones, in [low, high].
std::vector<float> points(double low, double high) {
  std::vector<float> x;
  std::mt19937_64 next(7);
  std::uniform_real_distribution<double> spread(low, high);
  constexpr int Count = 200'000;
  for (int i = 0; i <= Count; i++) {
    x.push_back(static_cast<float>(low + (high - low) * i / Count));
    x.push_back(static_cast<float>(spread(next)));
  }
  return x;
}

// Largest relative error of f against `exact`.
double relativeError(Apply f, double (*exact)(double), const std::vector<float>& x) {
  std::vector<float> y(x.size());
  f(x.data(), y.data(), static_cast<int64_t>(x.size()));
  double worst = 0;
  for (size_t i = 0; i < x.size(); i++) {
    const double want = exact(x[i]), error = std::fabs(y[i] - want) / std::max(std::fabs(want), 1e-300);
    worst = error <= worst ? worst : error;  // NaN wins
  }
  return worst;
}

double exactExp2(double x) { return std::exp2(x); }
double exactExp(double x) { return std::exp(x); }
double exactLog(double x) { return std::log(x); }
double exactLog1p(double x) { return std::log1p(x); }
double exactSoftplus(double x) { return x > 20 ? x : std::log1p(std::exp(x)); }
double exactSigmoid(double x) { return 1 / (1 + std::exp(-x)); }

// Positive numbers of every magnitude f32 has.
std::vector<float> magnitudes(float least, float most = 3e38f) {
  std::vector<float> x;
  for (float v = least; v < most; v = std::max(v * 1.0003f, std::nextafter(v, 1e38f))) x.push_back(v);
  return x;
}

void accurate(const char* where, Apply f, double (*exact)(double), const std::vector<float>& x, double bound) {
  const double error = relativeError(f, exact, x);
  CHECK(error < bound, where, error);
}

}  // namespace

TEST("exp2 and exp are accurate") {
  for (const Vector& set : sets()) {
    accurate(set.name, set.exp2, exactExp2, points(-122.4, 127.99), 2.0e-7);
    accurate(set.name, set.exp2, exactExp2, points(-1, 1), 2.0e-7);
    accurate(set.name, set.exp, exactExp, points(-84.8, 88.7), 1.2e-7);
    accurate(set.name, set.exp, exactExp, points(-1, 1), 1.2e-7);
  }
}

TEST("exp2 never exceeds 1 for x ≤ 0 and keeps 1 − 2^x near 0") {
  for (const Vector& set : sets()) {
    CHECK(apply(set.exp2, 0.0f) == 1.0f, set.name);
    CHECK(apply(set.exp2, -0.0f) == 1.0f, set.name);
    CHECK(apply(set.exp, 0.0f) == 1.0f, set.name);
    for (const float least : {-1e-12f, -1e-9f, -1e-6f, -1e-3f, -1.0f, -150.0f})
      for (int i = 0; i <= 20'000; i++) {
        const float x = least * static_cast<float>(i) / 20'000;
        const float y = apply(set.exp2, x);
        CHECK(y <= 1.0f && y >= 0.0f, set.name, x, y);
      }
    for (int i = 0; i <= 100'000; i++) {
      const float x = -static_cast<float>(1e-6 * std::pow(1e3, i / 100'000.0));
      const double error = std::fabs((1.0 - apply(set.exp2, x)) - -std::expm1(x * std::log(2.0)));
      CHECK(error <= 0x1p-24, set.name, x, error);
    }
  }
}

TEST("log, log1p, softplus and sigmoid are accurate") {
  for (const Vector& set : sets()) {
    const auto positive = magnitudes(1.2e-38f), subnormal = magnitudes(2e-44f);
    accurate(set.name, set.log, exactLog, positive, 1.0e-7);
    accurate(set.name, set.log, exactLog, subnormal, 1.0e-7);
    accurate(set.name, set.log, exactLog, points(0.5, 2), 1.0e-7);
    accurate(set.name, set.log1p, exactLog1p, magnitudes(1.2e-38f, 1), 1.5e-7);
    accurate(set.name, set.softplus, exactSoftplus, points(-84, 40), 2.0e-7);
    accurate(set.name, set.sigmoid, exactSigmoid, points(-84, 84), 1.8e-7);
  }
}

TEST("NaN and infinities pass through the functions") {
  for (const Vector& set : sets()) {
    for (const Apply f : {set.exp2, set.exp, set.log, set.log1p, set.softplus, set.sigmoid, set.round})
      for (const float nan : {NaN, -NaN}) CHECK(std::isnan(apply(f, nan)), set.name);
    for (const Apply f : {set.exp2, set.exp, set.softplus, set.log})
      CHECK(apply(f, Infinity) == Infinity, set.name);
    for (const Apply f : {set.exp2, set.exp, set.softplus, set.sigmoid}) CHECK(apply(f, -Infinity) == 0.0f, set.name);
    CHECK(apply(set.sigmoid, Infinity) == 1.0f, set.name);
    CHECK(apply(set.log, 0.0f) == -Infinity && apply(set.log, -0.0f) == -Infinity, set.name);
    CHECK(std::isnan(apply(set.log, -1.0f)) && std::isnan(apply(set.log, -Infinity)), set.name);
    for (const float large : {128.0f, 128.4f, 128.6f, 129.7f, 1e9f, 3e38f})
      CHECK(apply(set.exp2, large) == Infinity, set.name, large);
    for (const float large : {88.73f, 89.0f, 90.0f, 1e9f, 3e38f}) CHECK(apply(set.exp, large) == Infinity, set.name, large);
    for (float x = 150.0f; x < 1e38f; x *= 1.37f) {
      CHECK(apply(set.exp2, x) == Infinity && apply(set.exp, x) == Infinity && apply(set.sigmoid, x) == 1.0f, set.name, x);
      for (const Apply f : {set.exp2, set.exp, set.sigmoid, set.softplus}) CHECK(apply(f, -x) == 0.0f, set.name, x);
    }
    for (const float low : {-151.0f, -1e9f, -3e38f})
      CHECK(apply(set.exp2, low) == 0.0f && apply(set.exp, low) == 0.0f, set.name, low);
    for (const float low : {-123.0f, -126.0f, -130.0f, -149.0f}) {
      const float y = apply(set.exp2, low);
      CHECK(y >= 0.0f && y <= 0x1p-122f, set.name, low, y);
    }
  }
}

TEST("rounding goes to the nearest, to even between two") {
  for (const Vector& set : sets())
    for (const float x : {0.5f, 1.5f, 2.5f, -0.5f, -1.5f, 0.49999997f, 4194303.5f, 4194304.5f, 8388609.0f, -1e30f})
      CHECK(apply(set.round, x) == std::nearbyint(x), set.name, x, apply(set.round, x));
}

TEST("loads and stores with a tail touch no element beyond it") {
  for (const Vector& set : sets())
    for (int64_t n = 0; n <= 3 * set.lanes; n++) {
      std::vector<float> x(static_cast<size_t>(n), 1.5f), y(static_cast<size_t>(n + set.lanes), 7.0f);
      set.round(x.data(), y.data(), n);  // x has exactly n elements: a sanitizer sees a load beyond them
      for (int64_t i = 0; i < n + set.lanes; i++) CHECK(y[i] == (i < n ? 2.0f : 7.0f), set.name, n, i, y[i]);
      for (int64_t i = 0; i < n; i++) x[i] = static_cast<float>(i + 1);
      CHECK(set.sum(x.data(), n) == static_cast<float>(n * (n + 1) / 2), set.name, n);
    }
}

TEST("the maximum of a vector is found in every lane") {
  for (const Vector& set : sets())
    for (int lane = 0; lane < set.lanes; lane++) {
      std::vector<float> x(set.lanes, -3.0f);
      x[lane] = -1.0f;
      CHECK(set.maximum(x.data()) == -1.0f, set.name, lane);
    }
}

TEST("all 65536 bf16 and f16 patterns convert exactly, by vectors as by scalars") {
  for (const Vector& set : sets())
    for (int first = 0; first < 65536; first += set.lanes) {
      uint16_t half[16];
      float fromBf[16], fromHalf[16];
      for (int i = 0; i < set.lanes; i++) half[i] = static_cast<uint16_t>(first + i);
      set.fromBf16(half, fromBf);
      set.fromF16(half, fromHalf);
      for (int i = 0; i < set.lanes; i++) {
        const float wide = fromBf16(half[i]), scalar = fromF16(half[i]);
        CHECK(std::memcmp(&wide, &fromBf[i], 4) == 0, set.name, half[i]);
        CHECK(std::isnan(scalar) ? std::isnan(fromHalf[i]) : std::memcmp(&scalar, &fromHalf[i], 4) == 0, set.name, half[i]);
      }
    }
}

TEST("f16 values are what the format says") {
  for (int bits = 0; bits < 65536; bits++) {
    const int sign = bits >> 15, exponent = (bits >> 10) & 31, mantissa = bits & 1023;
    const float y = fromF16(static_cast<uint16_t>(bits));
    double want = (1 + mantissa / 1024.0) * std::exp2(exponent - 15);
    if (exponent == 0) want = mantissa * 0x1p-24;
    if (exponent == 31) want = mantissa ? NaN : Infinity;
    if (sign) want = -want;
    CHECK(std::isnan(want) ? std::isnan(y) : y == want && std::signbit(y) == (sign == 1), bits, y);
  }
}

TEST("rounding to bf16 goes to the nearest, to even between two, and keeps NaN") {
  std::vector<float> values{0.0f, -0.0f, Infinity, -Infinity, NaN, -NaN, 3.4e38f, 1e-40f};
  for (uint32_t high = 0; high < 65536; high++)  // each bf16 value, and points between it and the next
    for (const uint32_t low : {0u, 1u, 0x7fffu, 0x8000u, 0x8001u, 0xffffu}) values.push_back(std::bit_cast<float>(high << 16 | low));
  while (values.size() % 16) values.push_back(0);
  for (size_t i = 0; i < values.size(); i++) {
    const float x = values[i], y = fromBf16(toBf16(x));
    if (std::isnan(x)) {
      CHECK(std::isnan(y), i);
      continue;
    }
    const uint32_t bits = std::bit_cast<uint32_t>(x);
    const float below = std::bit_cast<float>(bits & 0xffff0000u);
    const float above = std::bit_cast<float>((bits & 0xffff0000u) + 0x10000u);
    const uint32_t rest = bits & 0xffffu;
    const float want = rest < 0x8000u || (rest == 0x8000u && !(bits & 0x10000u)) ? below : above;
    CHECK(y == want, x, y, want);
  }
  for (const Vector& set : sets())
    for (size_t i = 0; i < values.size(); i += set.lanes) {
      uint16_t half[16];
      set.toBf16(values.data() + i, half);
      for (int k = 0; k < set.lanes; k++) CHECK(half[k] == toBf16(values[i + k]), set.name, values[i + k]);
    }
}

}  // namespace selscan::test
#endif
