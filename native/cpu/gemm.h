// The matrix product under linear, its gradients and linearCrossEntropy:
//
//   C[m, n] = Σ_k A(m, k)·B(k, n)
//
// A is f32 with any strides, B is packed beforehand into panels of 16 columns, C is f32 row-major. Every element of C is one
// sum over k in rising order, whatever the number of rows, columns and threads: one row alone has the bits it has among 512.
//
// A panel is [steps][16] words of 32 bits. In precision f32 a step is one k and a word an f32; in bf16 a step is two k and
// a word a pair of bf16, the even k in its low half. That one layout feeds vdpbf16ps, AMX tiles, and plain multiply-adds
// after unpacking. Columns past the last and k past the last are zeros; panels of bf16 are
// padded to a multiple of 16 steps (a tile). Weights in 8 bits have panels of their own, with scales (cpu/gemm_int8.h).
//
// bf16x3, on AMX alone, splits x into h = bf16(x) and l = bf16(x − h) and makes three products of bf16 of one of f32:
//
//   Σ a·b ≈ Σ over blocks of 32 k of  al·bh, then ah·bh, then ah·bl        each the 32 products of a tile, in rising order of blocks
//
// In a panel, and in a row of A, the 16 words of h of such a block stand before the 16 of its l.
// Half a unit of bf16 is 2⁻⁸ of the power of two 2^e ≤ |x|: |x − h| and so |l| are at most 2⁻⁸·2^e. Rounding l loses half a unit of what
// lies below 2⁻⁸·2^e, so |x − h − l| ≤ 2⁻¹⁷·|x|. What is left out of a·b is al·bl ≤ 2⁻¹⁶ and what a and b lost, 2⁻¹⁷ each: at most
// 2⁻¹⁵·|a·b|, which a = b = 1 + 2⁻⁸ − 2⁻¹⁷ − 2⁻²³ nearly reaches. Products of bf16 are exact in f32, and an element is the sum of
// 3·⌈k/32⌉ tiles, each 17 additions in line, so to first order |error| ≤ (2⁻¹⁵ + (3·⌈k/32⌉ + 17)·2⁻²⁴)·Σ|a·b|. A bf16 weight has no l:
// bf16x2 makes two products, and its bound is 2⁻¹⁷. Worst of 4096 sums over 1024 k of normal numbers, as a share of Σ|a·b| (emulated
// tiles, 2026-11-22): bf16x3 7.7e-7, f32 2.2e-7, bf16 3.8e-4.
//
// h of what rounding would make infinite is the greatest bf16. An infinity has h = ±1 and l = ±∞, so its products with anything are those
// of f32; a NaN has l = NaN. Below 2⁻¹²⁶ AMX and its rounding see zero, so numbers below 2⁻¹¹⁰ lose up to 2⁻¹²⁶. A product that comes
// within 2⁻¹⁵ of the greatest f32 may be infinite, and one beyond it infinite or NaN, since its parts overflow either way. On processors
// without tiles bf16x3 is f32, which there is exact and no slower: three products at 510 GFLOP/s of vdpbf16ps take longer than one at
// 257 of f32 (one core of an AMD EPYC, Zen 5).
//
// SELSCAN_AMX=emulate in the environment runs the AMX kernels on tiles made of plain arrays: their packing, blocking and tails
// can be tested on any machine.
#pragma once
#include "core/kernel.h"
#include "cpu/threads.h"
#include "ops/linear.h"

namespace selscan::cpu {

using ops::Precision;

// The precision of products whose B is of this dtype, for the attribute `precision`.
Precision productsOf(const Attributes&, Dtype right);
constexpr bool isSplit(Precision precision) { return precision == Precision::bf16x3 || precision == Precision::bf16x2; }
// How many k a word of A's rows has: a pair of bf16 two, an f32 one; of a split, whose pairs are of halves, one on the average.
constexpr int64_t perStep(Precision precision) { return precision == Precision::bf16 ? 2 : 1; }

constexpr int64_t PanelWidth = 16;
constexpr int64_t RowBlock = 96;     // rows of C in one task at most: a multiple of the 12 rows of a register tile and of the 32 of AMX
constexpr int64_t StepBlock = 256;   // steps between two loads of C: two panels of B (32 KB) and 12 rows of A (12 KB) stay in L1
constexpr int64_t PackedSteps = 8 * StepBlock;  // steps for which A's block is packed at a time: 786 KB at most, which L2 of 1 MB and more holds

// A(m, k) = data[m·rowStride + k·innerStride]; one of the strides is 1.
struct Left {
  const float* data;
  int64_t rowStride, innerStride;
};

// What is to be packed: B(k, n) = data[k·innerStride + n·columnStride]; one of the strides is 1. f32 or bf16.
struct Right {
  const std::byte* data;
  Dtype dtype;
  int64_t innerStride, columnStride;
};

struct Panels {
  Precision precision;
  int64_t inner, columns;  // sizes of k and n
  const uint32_t* words = nullptr;
  const uint16_t* scales = nullptr;  // of int8: 16 bf16 for each 32 k of a panel

  int64_t count() const { return (columns + PanelWidth - 1) / PanelWidth; }
  int64_t steps() const { return (inner + perStep(precision) - 1) / perStep(precision); }
  int64_t groups() const { return (inner + 31) / 32; }
  int64_t panelWords() const {
    const int64_t perGroup = precision == Precision::bf16x3 ? 32 : precision == Precision::int8 ? 8 : 16;  // bf16x2: of bf16
    return (precision == Precision::f32 ? inner : groups() * perGroup) * PanelWidth;
  }
  // Those from one of them on, for so many columns.
  Panels from(int64_t panel, int64_t wanted) const {
    return {precision, inner, wanted, words + panel * panelWords(), scales ? scales + panel * groups() * PanelWidth : nullptr};
  }
  size_t sizeBytes() const { return static_cast<size_t>(count() * panelWords()) * sizeof(uint32_t); }
};

// Packs B into `to` (shape.sizeBytes() bytes, 64-byte aligned) and returns the panels.
Panels packPanels(const Right& from, Panels shape, std::byte* to);

struct Product {
  Left a;
  Panels b;
  float* c;
  int64_t cStride;
  bool continued = false;  // C holds sums over earlier k, which go on
  const uint32_t* packed = nullptr;  // all of A as packRows() has it, block of rows after block; null: the kernel packs what it needs
  uint64_t id = 0;  // of newProduct(): a thread packs a block's A once for all blocks beside it; 0: once for each
  const std::byte* rounded = nullptr;  // rows in 8 bits, for kernels of int8 (cpu/gemm_int8.h); A's are those from `roundedRow` on
  int64_t roundedRow = 0;
};
uint64_t newProduct();

// Rows [row, rowEnd) and panels [panel, panelEnd) of C; at most RowBlock rows.
struct Block {
  int64_t row, rowEnd, panel, panelEnd;
};
// Its rows as strips of register tiles, of one height but for the last.
struct Strips {
  int count, height, lastHeight;
};
constexpr Strips stripsOf(const Block& block, int tileRows) {
  const int rows = static_cast<int>(block.rowEnd - block.row), count = (rows + tileRows - 1) / tileRows;
  const int height = (rows + count - 1) / count;
  return {count, height, rows - (count - 1) * height};
}
using BlockProduct = void (*)(const Product&, const Block&);
// The kernel of this processor; safe to call inside cpu::parallel.
BlockProduct blockProduct(Precision);

struct Range {
  int64_t begin, end;
};
// Words of RowBlock rows of A in the layout the kernels want, [steps / StepBlock][RowBlock][StepBlock].
constexpr int64_t packedWords(int64_t steps) { return (steps + StepBlock - 1) / StepBlock * RowBlock * StepBlock; }
// Packs rows [rows.begin, rows.end), at most RowBlock, and k in the range, which begins at a multiple of 32: f32 as they are, or rounded
// to pairs of bf16, or both halves of each 32, with zeros up to whole tiles. Rows follow up to a multiple of `multiple`, all zeros.
void packRows(const Left&, Precision, Range rows, Range inner, int64_t multiple, uint32_t* to);
// A's rows of the block from `step` on, for PackedSteps or what is left of them: packed now, or by the caller.
const uint32_t* leftRows(const Product&, const Block&, int64_t step, int64_t multiple);

// How C is cut into tasks, by shape alone: about 32 of them, of RowBlock rows × as many panels as that leaves. A narrow C is cut across
// its rows only, for each further cut down its columns packs A's rows once more. Panels are whole register tiles: of 3 panels
// for 7 and 8 rows and for 13 to 16, which are two strips of such, of 2 for others from 9 on, at least 4 below.
struct Cut {
  int64_t rows, panels;
};
inline Cut cutOf(int64_t rows, int64_t panels) {
  constexpr int64_t Tasks = 32, Narrow = 16, NarrowRows = 32;
  const auto parts = [](int64_t n, int64_t size) { return (n + size - 1) / size; };
  const bool narrow = panels <= Narrow && rows < Tasks / 2 * RowBlock;
  const int64_t height = narrow ? NarrowRows : RowBlock, down = parts(rows, height);
  const int64_t across = narrow && down >= Tasks / 4 ? 1 : parts(Tasks, down);
  const int64_t unit = rows > 16 || (rows > 8 && rows <= 12) ? 2 : rows > 6 ? 6 : 4;
  return {height, parts(parts(panels, across), unit) * unit};
}

// C = A·B over the threads; after(block) follows each finished block while it is in the cache.
template <class After>
void multiply(Product product, int64_t rows, After&& after) {
  product.id = newProduct();
  const BlockProduct run = blockProduct(product.b.precision);
  const int64_t panels = product.b.count();
  const Cut cut = cutOf(rows, panels);
  const int64_t across = (panels + cut.panels - 1) / cut.panels, down = (rows + cut.rows - 1) / cut.rows;
  parallel(across * down, [&](int64_t task) {
    const int64_t row = task / across * cut.rows, panel = task % across * cut.panels;
    const int64_t rowEnd = row + cut.rows < rows ? row + cut.rows : rows;
    const Block block{row, rowEnd, panel, panel + cut.panels < panels ? panel + cut.panels : panels};
    run(product, block);
    after(block);
  });
}
inline void multiply(const Product& product, int64_t rows) {
  multiply(product, rows, [](const Block&) {});
}

// Undoes packPanels of a transpose: rows of (columns, inner), f32 or bf16, from its panels.
void unpackRows(const Panels& panels, const Tensor& to);

// The precision of panels that hold all of a weight.
inline Precision storedPrecision(const Tensor& weight) { return weight.dtype == Dtype::bf16 ? Precision::bf16 : Precision::f32; }

// The panels of a weight of shape (out, in), as the runtime keeps them beside it: forward() for x·Wᵀ (k is in), backward()
// for dy·W (k is out).
const Preparation* forwardPanels(Precision);
const Preparation* backwardPanels(Precision);

// C = A·B (or C += A·B, where continued) over a long k: slabs of SlabRows k of both A and B are packed into `room` (slabBytes
// bytes, 64-byte aligned), one after another, each element once. product.b gives the sizes.
constexpr int64_t SlabRows = 2 * StepBlock;
size_t slabBytes(Precision, int64_t rows, int64_t inner, int64_t columns);
void multiplySlabs(Product product, const Right& b, int64_t rows, std::byte* room);

}  // namespace selscan::cpu
