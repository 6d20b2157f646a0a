// Packing of both sides of the matrix product; layouts are in gemm.h.
//
// One task per 16 panels and stretch of 512 k. Squares of 16 × 16 are read along whichever stride is 1 and in its order, since
// lines that lie a row apart cost a page each (panel by panel: 1.3 times slower); the others are turned in L1.
// Bound by memory; the packing of a weight is one pass per update of it.
#include <algorithm>
#include <cstring>

#include "cpu/gemm.h"

#define EACH_ISA "cpu/gemm_pack.cpp"
#include "cpu/each_isa.h"

#ifdef ISA
namespace selscan::ISA {
namespace {

constexpr int Width = 16;

// Lane i of `to` holds even[i] and odd[i], rounded, as low and high half.
inline void zip(const float* even, const float* odd, uint32_t* to) {
  uint16_t low[Width], high[Width];
  for (int i = 0; i < Width; i += Lanes) {
    storeBf16(low + i, load(even + i));
    storeBf16(high + i, load(odd + i));
  }
  for (int i = 0; i < Width; i++) to[i] = static_cast<uint32_t>(low[i]) | static_cast<uint32_t>(high[i]) << 16;
}

// As gather() and zip() do for bf16 that stay bf16: no value is touched, not even one too small for the processor's products.
void packHalves(const cpu::Right& from, int64_t k0, int depth, int64_t column, int width, uint32_t* to) {
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
  uint32_t* out = to + panel * shape.panelWords();
  const bool f32 = shape.precision == cpu::Precision::f32;
  if (f32 && from.columnStride == 1 && from.dtype == Dtype::f32 && width == Width) {
    const float* line = reinterpret_cast<const float*>(from.data) + k * from.innerStride + column;
    for (int i = 0; i < depth; i++) std::memcpy(out + (k + i) * Width, line + i * from.innerStride, sizeof(float) * Width);
    return;
  }
  if (!f32 && from.dtype == Dtype::bf16) return packHalves(from, k, depth, column, width, out + k / 2 * Width);
  float rows[Width][Width];
  gather(from, k, depth, column, width, rows);
  if (f32) std::memcpy(out + k * Width, rows, sizeof(float) * Width * depth);
  else
    for (int pair = 0; pair < Width / 2; pair++) zip(rows[2 * pair], rows[2 * pair + 1], out + (k / 2 + pair) * Width);
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

void packPairs(const cpu::Left& a, const cpu::Block& block, const cpu::Range& inner, uint32_t* to) {
  const int64_t rows = block.rowEnd - block.row, depth = inner.end - inner.begin;
  if (a.innerStride == 1) {
    for (int64_t m = 0; m < rows; m++) {
      const float* from = a.data + (block.row + m) * a.rowStride + inner.begin;
      uint16_t* line = reinterpret_cast<uint16_t*>(to + m * cpu::StepBlock);
      int64_t k = 0;
      for (; k + Lanes <= depth; k += Lanes) storeBf16(line + k, load(from + k));
      for (; k < depth; k++) line[k] = toBf16(from[k]);
      if (depth % 2) line[depth] = 0;
    }
    return;
  }
  const float zeros[Width] = {};
  for (int64_t k = 0; k < depth; k += 2) {
    const float* even = a.data + (inner.begin + k) * a.innerStride + block.row;
    const bool paired = k + 1 < depth;
    const float* odd = paired ? even + a.innerStride : zeros;
    uint32_t* line = to + k / 2 * cpu::RowBlock;
    int64_t m = 0;
    for (; m + Width <= rows; m += Width) zip(even + m, paired ? odd + m : zeros, line + m);
    for (; m < rows; m++)
      line[m] = toBf16(even[m]) | static_cast<uint32_t>(paired ? toBf16(odd[m]) : 0) << 16;
  }
}

}  // namespace selscan::ISA
#else
namespace selscan::cpu {

#if SELSCAN_X86
#define CHOOSE(f) (isa() >= Isa::avx512 ? avx512::f : isa() == Isa::avx2 ? avx2::f : portable::f)
#else
#define CHOOSE(f) portable::f
#endif

void packPairs(const Left& a, const Block& block, Range inner, uint32_t* to) { CHOOSE(packPairs)(a, block, inner, to); }

Panels packPanels(const Right& from, Panels shape, std::byte* to) {
  constexpr int64_t Stretch = 512, Wide = 16;
  const auto packRegion = CHOOSE(packRegion);
  shape.words = reinterpret_cast<const uint32_t*>(to);
  const int64_t stored = shape.precision == Precision::f32 ? shape.inner : shape.panelWords() / PanelWidth * 2;
  const int64_t stretches = (stored + Stretch - 1) / Stretch, groups = (shape.count() + Wide - 1) / Wide;
  parallel(groups * stretches, [&](int64_t task) {
    const int64_t panel = task / stretches * Wide, k = task % stretches * Stretch;
    const Range panels{panel, panel + Wide < shape.count() ? panel + Wide : shape.count()};
    packRegion(from, shape, panels, {k, k + Stretch < stored ? k + Stretch : stored}, reinterpret_cast<uint32_t*>(to));
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
