// Packing of both sides of the matrix product; layouts are in gemm.h.
//
// One task per 64 k or per 16 panels and stretch of 512 k. Squares of 16 × 16 are read along whichever stride is 1 and in its order, since
// lines that lie a row apart cost a page each (panel by panel: 1.3 times slower); the others are turned in L1.
// Bound by memory; the packing of a weight is one pass per update of it.
#include <algorithm>
#include <cfloat>
#include <cstring>

#include "cpu/gemm.h"

#define EACH_ISA "cpu/gemm_pack.cpp"
#include "cpu/each_isa.h"

#ifdef ISA
namespace selscan::ISA {
namespace {

constexpr int Width = 16;

// Lane i of `to` holds even[i] and odd[i], rounded, as low and high half.
inline void pair(F32 even, F32 odd, uint32_t* to) {
#if defined(SELSCAN_AVX512BF16)
  alignas(64) static constexpr uint16_t Zipped[2 * Width] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                             8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512i halves = (__m512i)_mm512_cvtne2ps_pbh(odd.v, even.v);
  _mm512_storeu_si512(to, _mm512_permutexvar_epi16(_mm512_load_si512(Zipped), halves));
#else
  const F32 low = roundedToBf16(even), high = roundedToBf16(odd);
#if defined(SELSCAN_AVX512)
  _mm512_storeu_si512(to, _mm512_or_si512(_mm512_srli_epi32(_mm512_castps_si512(low.v), 16), _mm512_castps_si512(high.v)));
#elif defined(SELSCAN_AVX2)
  const __m256i words = _mm256_or_si256(_mm256_srli_epi32(_mm256_castps_si256(low.v), 16), _mm256_castps_si256(high.v));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), words);
#else
  uint32_t lows[Lanes], highs[Lanes];
  std::memcpy(lows, low.v, sizeof lows);
  std::memcpy(highs, high.v, sizeof highs);
  for (int i = 0; i < Lanes; i++) to[i] = lows[i] >> 16 | highs[i];
#endif
#endif
}

// Lanes numbers, of which n are read; the others are zeros, and so are all where there are none.
inline F32 some(const float* from, int n) {
  return !from || n <= 0 ? set(0.0f) : n < Lanes ? load(from, n) : load(from);
}

// pair() of 16 lanes, of which n are read; null is a line of zeros.
inline void zip(const float* even, const float* odd, int n, uint32_t* to) {
  for (int i = 0; i < Width; i += Lanes) pair(some(even ? even + i : nullptr, n - i), some(odd ? odd + i : nullptr, n - i), to + i);
}

// x = high + low up to 2⁻¹⁷·|x| once low is rounded too, see cpu/gemm.h. min and max take the other one of a NaN, which is in low then.
struct Halves {
  F32 high, low;
};
inline Halves split(F32 x) {
  const F32 most = selectGreater(abs(x), set(FLT_MAX), set(1.0f), set(fromBf16(0x7f7f)));
  const F32 high = roundedToBf16(max(min(x, most), set(0.0f) - most));
  return {high, x - high};
}

// zip() of both halves.
inline void zipHalves(const float* even, const float* odd, int n, uint32_t* high, uint32_t* low) {
  for (int i = 0; i < Width; i += Lanes) {
    const Halves a = split(some(even ? even + i : nullptr, n - i)), b = split(some(odd ? odd + i : nullptr, n - i));
    pair(a.high, b.high, high + i);
    pair(a.low, b.low, low + i);
  }
}

// to[m·stride + i] = from[i][m], 16 × 16.
inline void turn(const uint32_t (*from)[Width], uint32_t* to, int64_t stride) {
  for (int i = 0; i < Width; i += Lanes)
    for (int m = 0; m < Width; m += Lanes) {
      F32 square[Lanes];
      SELSCAN_UNROLL
      for (int lane = 0; lane < Lanes; lane++) square[lane] = load(reinterpret_cast<const float*>(from[i + lane] + m));
      transpose(square);
      SELSCAN_UNROLL
      for (int lane = 0; lane < Lanes; lane++) store(reinterpret_cast<float*>(to + (m + lane) * stride + i), square[lane]);
    }
}

// As gather() and zip() do for bf16 that stay bf16: no value is touched, not even one too small for the processor's products.
void packKept(const cpu::Right& from, int64_t k0, int depth, int64_t column, int width, uint32_t* to) {
  uint16_t rows[Width][Width] = {};
  const uint16_t* corner = reinterpret_cast<const uint16_t*>(from.data) + k0 * from.innerStride + column * from.columnStride;
  for (int k = 0; k < depth; k++)
    for (int j = 0; j < width; j++) rows[k][j] = corner[k * from.innerStride + j * from.columnStride];
  for (int pair = 0; pair < Width / 2; pair++)
    for (int j = 0; j < Width; j++)
      to[pair * Width + j] = rows[2 * pair][j] | static_cast<uint32_t>(rows[2 * pair + 1][j]) << 16;
}

// rows[k][j] = B(k0 + k, column + j) for k < depth ≤ 16; zeros beyond the last column and the last k.
void gather(const cpu::Right& from, int64_t k0, int depth, int64_t column, int width, float (*rows)[Width]) {
  std::memset(rows, 0, sizeof(float) * Width * Width);
  const int64_t corner = k0 * from.innerStride + column * from.columnStride;
  const bool alongColumns = from.columnStride == 1;
  const int lines = alongColumns ? depth : width, length = alongColumns ? width : depth;
  const int64_t stride = alongColumns ? from.innerStride : from.columnStride;
  float turned[Width][Width];
  float(*lineOf)[Width] = alongColumns ? rows : turned;
  for (int line = 0; line < lines; line++) {
    const int64_t at = corner + line * stride;
    if (from.dtype == Dtype::f32) {
      std::memcpy(lineOf[line], reinterpret_cast<const float*>(from.data) + at, sizeof(float) * length);
    } else {
      const uint16_t* halves = reinterpret_cast<const uint16_t*>(from.data) + at;
      for (int i = 0; i < length; i++) lineOf[line][i] = fromBf16(halves[i]);
    }
  }
  if (!alongColumns)
    for (int i = 0; i < length; i++)
      for (int line = 0; line < lines; line++) rows[i][line] = turned[line][i];
}

}  // namespace

// The 16 k from k on of one panel; those beyond the last k are zeros (in f32 they are not stored).
inline void packSquare(const cpu::Right& from, const cpu::Panels& shape, int64_t k, int64_t panel, uint32_t* to) {
  const int64_t column = panel * Width, left = shape.inner - k;
  const int width = shape.columns - column < Width ? static_cast<int>(shape.columns - column) : Width;
  const int depth = left < 0 ? 0 : left < Width ? static_cast<int>(left) : Width;
  const bool f32 = shape.precision == cpu::Precision::f32, halves = shape.precision == cpu::Precision::bf16x3;
  uint32_t* panelTo = to + panel * shape.panelWords();
  uint32_t* out = panelTo + (f32 ? k : halves ? k / 32 * 32 + k % 32 / 2 : k / 2) * Width;  // of halves the higher ones'
  if (from.columnStride == 1 && from.dtype == Dtype::f32)
    for (int i = 0; i < Width; i++)
      __builtin_prefetch(reinterpret_cast<const float*>(from.data) + (k + Width + i) * from.innerStride + column);
  if (f32 && from.columnStride == 1 && from.dtype == Dtype::f32 && width == Width) {
    const float* line = reinterpret_cast<const float*>(from.data) + k * from.innerStride + column;
    for (int i = 0; i < depth; i++) std::memcpy(out + i * Width, line + i * from.innerStride, sizeof(float) * Width);
    return;
  }
  if (!f32 && !halves && from.dtype == Dtype::bf16) return packKept(from, k, depth, column, width, out);
  const auto pairs = [&](const float* even, const float* odd, int n, int i) {
    if (halves) zipHalves(even, odd, n, out + i / 2 * Width, out + (Width + i / 2) * Width);
    else zip(even, odd, n, out + i / 2 * Width);
  };
  if (!f32 && from.columnStride == 1 && from.dtype == Dtype::f32) {
    const float* line = reinterpret_cast<const float*>(from.data) + k * from.innerStride + column;
    for (int i = 0; i < Width; i += 2)
      pairs(i < depth ? line + i * from.innerStride : nullptr, i + 1 < depth ? line + (i + 1) * from.innerStride : nullptr, width, i);
    return;
  }
  float rows[Width][Width];
  gather(from, k, depth, column, width, rows);
  if (f32) std::memcpy(out, rows, sizeof(float) * Width * depth);
  else
    for (int i = 0; i < Width; i += 2) pairs(rows[i], rows[i + 1], Width, i);
}

// Panels [panels.begin, end), k in [inner.begin, end), which is whole squares; inner.end may lie beyond the last k.
void packRegion(const cpu::Right& from, const cpu::Panels& shape, cpu::Range panels, cpu::Range inner, uint32_t* to) {
  if (from.columnStride == 1) {
    for (int64_t k = inner.begin; k < inner.end; k += Width)
      for (int64_t panel = panels.begin; panel < panels.end; panel++) packSquare(from, shape, k, panel, to);
  } else {
    for (int64_t panel = panels.begin; panel < panels.end; panel++)
      for (int64_t k = inner.begin; k < inner.end; k += Width) packSquare(from, shape, k, panel, to);
  }
}

// The halves of a row's k, 32 at a time.
inline void packLineHalves(const float* from, int64_t depth, uint32_t* to) {
  constexpr int Group = 2 * Width;
  for (int64_t k = 0; k < depth; k += Group, to += Group) {
    uint16_t *high = reinterpret_cast<uint16_t*>(to), *low = high + Group;
    const int n = depth - k < Group ? static_cast<int>(depth - k) : Group;
#if defined(SELSCAN_AVX512BF16)
    const Halves a = split(some(from + k, n)), b = split(some(from + k + Lanes, n - Lanes));
    _mm512_storeu_si512(high, (__m512i)_mm512_cvtne2ps_pbh(b.high.v, a.high.v));
    _mm512_storeu_si512(low, (__m512i)_mm512_cvtne2ps_pbh(b.low.v, a.low.v));
#else
    for (int i = 0; i < Group; i += Lanes) {
      const Halves x = split(some(from + k + i, n - i));
      storeBf16(high + i, x.high);
      storeBf16(low + i, x.low);
    }
#endif
  }
}

// One row of A whose k follow one another: `depth` of them, at most a block of steps. `next` is read after it: processors foresee
// no stream across pages, which would cost a row of A some 16 lines at the speed of L3's latency.
inline void packLine(const float* from, const float* next, cpu::Precision precision, int64_t depth, uint32_t* to) {
  for (int64_t k = 0; k < depth; k += Width) __builtin_prefetch(next + k);
  if (cpu::isSplit(precision)) return packLineHalves(from, depth, to);
  if (precision == cpu::Precision::f32) {
    std::memcpy(to, from, sizeof(float) * depth);
    return;
  }
  uint16_t* line = reinterpret_cast<uint16_t*>(to);
  int64_t k = 0;
#if defined(SELSCAN_AVX512BF16)
  for (; k + 2 * Lanes <= depth; k += 2 * Lanes)
    _mm512_storeu_si512(line + k, (__m512i)_mm512_cvtne2ps_pbh(load(from + k + Lanes).v, load(from + k).v));
#endif
  for (; k + Lanes <= depth; k += Lanes) storeBf16(line + k, load(from + k));
  for (; k < depth; k++) line[k] = toBf16(from[k]);
  for (; k % (2 * Width) != 0; k++) line[k] = 0;
}

// 16 rows of A that follow one another (those beyond `rows` are zeros) × 16 k of f32 or 32, turned in L1; `depth` k are left from `from` on.
inline void packTurned(const float* from, int64_t innerStride, cpu::Precision precision, int rows, int64_t depth, uint32_t* to) {
  const bool f32 = precision == cpu::Precision::f32, halves = cpu::isSplit(precision);
  const int each = f32 ? 1 : 2;
  alignas(64) uint32_t square[Width][Width], low[Width][Width];
  for (int i = 0; i < Width; i++) {
    const int64_t left = depth - i * each;
    const float* line = from + i * each * innerStride;
    for (int odd = 0; odd < each; odd++) __builtin_prefetch(line + (Width * each + odd) * innerStride);
    const float *even = left > 0 ? line : nullptr, *odd = left > 1 ? line + innerStride : nullptr;
    if (halves) zipHalves(even, odd, rows, square[i], low[i]);
    else if (!f32) zip(even, odd, rows, square[i]);
    else std::memset(square[i], 0, sizeof square[i]), std::memcpy(square[i], line, left > 0 ? sizeof(float) * rows : 0);
  }
  turn(square, to, cpu::StepBlock);
  if (halves) turn(low, to + Width, cpu::StepBlock);
}

void packRows(const cpu::Left& a, cpu::Precision precision, const cpu::Range& rows, const cpu::Range& inner, int64_t multiple,
              uint32_t* to) {
  const int64_t count = rows.end - rows.begin, depth = inner.end - inner.begin;
  const int64_t each = cpu::perStep(precision), stretch = cpu::StepBlock * each;
  const int64_t square = precision == cpu::Precision::f32 ? Width : 2 * Width;  // k that packTurned() takes
  const float* from = a.data + rows.begin * a.rowStride + inner.begin * a.innerStride;
  const auto place = [&](int64_t m, int64_t k) {
    return to + k / stretch * cpu::packedWords(cpu::StepBlock) + m * cpu::StepBlock + k % stretch / each;
  };
  // Memory is read in its order.
  if (a.innerStride == 1) {
    for (int64_t m = 0; m < count; m++)
      for (int64_t k = 0; k < depth; k += stretch) {
        const float* line = from + m * a.rowStride + k;
        packLine(line, m + 1 < count ? line + a.rowStride : line, precision, depth - k < stretch ? depth - k : stretch, place(m, k));
      }
  } else {
    for (int64_t k = 0; k < depth; k += square)
      for (int64_t m = 0; m < count; m += Width)
        packTurned(from + m + k * a.innerStride, a.innerStride, precision, count - m < Width ? static_cast<int>(count - m) : Width,
                   depth - k, place(m, k));
  }
  for (int64_t m = count; m % multiple != 0; m++)
    for (int64_t k = 0; k < depth; k += stretch) std::memset(place(m, k), 0, sizeof(uint32_t) * cpu::StepBlock);
}

}  // namespace selscan::ISA
#else
#if SELSCAN_X86
// Once more, with the processor's own rounding to bf16: twice as fast, and numbers below 2^-126 become zeros, as in its products.
SELSCAN_PUSH_TARGET_AVX512BF16
#define ISA avx512bf16
#define SELSCAN_AVX512 1
#define SELSCAN_AVX512BF16 1
namespace selscan::avx512bf16 {
using avx512::F32, avx512::Lanes, avx512::load, avx512::roundedToBf16, avx512::set, avx512::store, avx512::storeBf16,
    avx512::transpose;
}
#include EACH_ISA
#undef SELSCAN_AVX512BF16
#undef SELSCAN_AVX512
#undef ISA
SELSCAN_POP_TARGET
#endif

namespace selscan::cpu {

#if SELSCAN_X86
#define CHOOSE(f) \
  (isa() >= Isa::avx512bf16 ? avx512bf16::f : isa() == Isa::avx512 ? avx512::f : isa() == Isa::avx2 ? avx2::f : portable::f)
#else
#define CHOOSE(f) portable::f
#endif

void packRows(const Left& a, Precision precision, Range rows, Range inner, int64_t multiple, uint32_t* to) {
  CHOOSE(packRows)(a, precision, rows, inner, multiple, to);
}

Panels packPanels(const Right& from, Panels shape, std::byte* to) {
  // Lines along the columns are read whole, a few at a time; lines along k by stretches of them.
  const bool lines = from.columnStride == 1;
  const int64_t stretch = lines ? 64 : 512, wide = lines ? shape.count() : 16;
  const auto packRegion = CHOOSE(packRegion);
  shape.words = reinterpret_cast<const uint32_t*>(to);
  const int64_t stored = shape.precision == Precision::f32 ? shape.inner : shape.groups() * 32;
  const int64_t stretches = (stored + stretch - 1) / stretch, groups = (shape.count() + wide - 1) / wide;
  parallel(groups * stretches, [&](int64_t task) {
    const int64_t panel = task / stretches * wide, k = task % stretches * stretch;
    const Range panels{panel, panel + wide < shape.count() ? panel + wide : shape.count()};
    packRegion(from, shape, panels, {k, k + stretch < stored ? k + stretch : stored}, reinterpret_cast<uint32_t*>(to));
  });
  return shape;
}

void unpackRows(const Panels& panels, const Tensor& to) {
  const bool f32 = panels.precision == Precision::f32;
  parallel(panels.count(), [&](int64_t panel) {
    const uint32_t* words = panels.words + panel * panels.panelWords();
    const int64_t end = std::min(panels.columns, (panel + 1) * PanelWidth);
    for (int64_t row = panel * PanelWidth; row < end; row++)
      for (int64_t k = 0; k < panels.inner; k++) {
        const uint32_t word = words[(f32 ? k : k / 2) * PanelWidth + row % PanelWidth];
        const int64_t at = row * panels.inner + k;
        if (f32 && to.dtype == Dtype::f32) std::memcpy(to.f32() + at, &word, sizeof word);
        else to.half()[at] = static_cast<uint16_t>(f32 || k % 2 ? word >> 16 : word);  // f32 that came from bf16 end in 16 zeros
      }
  });
}

}  // namespace selscan::cpu
#endif
