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
// padded to a multiple of 16 steps (a tile).
//
// SELSCAN_AMX=emulate in the environment runs the AMX kernel on tiles made of plain arrays: its packing, blocking and tails
// can be tested on any machine.
#pragma once
#include "core/kernel.h"
#include "cpu/threads.h"
#include "ops/linear.h"

namespace selscan::cpu {

using ops::Precision, ops::precisionOf;

constexpr int64_t PanelWidth = 16;
constexpr int64_t RowBlock = 96;     // rows of C in one task: a multiple of the 6 rows of a register tile and of the 32 of AMX
constexpr int64_t StepBlock = 256;   // steps between two loads of C: A's block (96 KB) and B's four panels (64 KB) stay in L2

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

  int64_t count() const { return (columns + PanelWidth - 1) / PanelWidth; }
  int64_t steps() const { return precision == Precision::f32 ? inner : (inner + 1) / 2; }
  int64_t panelWords() const {
    return (precision == Precision::f32 ? inner : (inner + 31) / 32 * 16) * PanelWidth;
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
};

// Rows [row, rowEnd) and panels [panel, panelEnd) of C; at most RowBlock rows.
struct Block {
  int64_t row, rowEnd, panel, panelEnd;
};
using BlockProduct = void (*)(const Product&, const Block&);
// The kernel of this processor; safe to call inside cpu::parallel.
BlockProduct blockProduct(Precision);

// Room for A's block in the layout the kernels want: 64-byte aligned, of this thread.
constexpr int64_t PackedWords = RowBlock * StepBlock;
uint32_t* packedRows();

struct Range {
  int64_t begin, end;
};
// Rounds A's rows of the block, k in the range (which begins at an even k), to pairs of bf16; an odd last k meets a zero.
// Row m, pair p is to[m·StepBlock + p] where A's inner stride is 1, else to[p·RowBlock + m].
void packPairs(const Left&, const Block&, Range inner, uint32_t* to);

// Panels in one task: 16, for which A's block is packed once, but fewer where that would leave threads without a task. Cut by
// shape alone.
inline int64_t panelBlock(int64_t rows, int64_t panels) {
  const int64_t down = (rows + RowBlock - 1) / RowBlock;
  int64_t wide = rows > 32 ? 16 : 4;
  while (wide > 4 && down * (panels / wide) < 16) wide /= 2;
  return wide;
}

// C = A·B over the threads; after(block) follows each finished block while it is in the cache.
template <class After>
void multiply(const Product& product, int64_t rows, After&& after) {
  const BlockProduct run = blockProduct(product.b.precision);
  const int64_t panels = product.b.count(), wide = panelBlock(rows, panels);
  const int64_t across = (panels + wide - 1) / wide, down = (rows + RowBlock - 1) / RowBlock;
  parallel(across * down, [&](int64_t task) {
    const int64_t row = task / across * RowBlock, panel = task % across * wide;
    const int64_t rowEnd = row + RowBlock < rows ? row + RowBlock : rows;
    const Block block{row, rowEnd, panel, panel + wide < panels ? panel + wide : panels};
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

// C = A·B (or C += A·B, where continued) over a long k: B is packed into `room` (slabBytes bytes) by slabs of as many k as
// one block of bf16 steps holds. product.b gives the sizes.
constexpr int64_t SlabRows = 2 * StepBlock;
size_t slabBytes(Precision, int64_t inner, int64_t columns);
void multiplySlabs(Product product, const Right& b, int64_t rows, std::byte* room);

}  // namespace selscan::cpu
