// The blocked product over register tiles, compiled once for each instruction set; included inside the target regions of
// gemm.cpp and gemm_avx512bf16.cpp, so it has no guard. Multiply says what a step of k is:
//
//   Multiply::left(const uint32_t*)    one word of A in all lanes
//   Multiply::right(const uint32_t*)   Lanes words of B
//   Multiply::add(left, right, sum)    sum + left·right
//   Multiply::Halves                   whether a word is a pair of bf16
#if defined(__clang__)
#define SELSCAN_UNROLL _Pragma("clang loop unroll(full)")
#else
#define SELSCAN_UNROLL _Pragma("GCC unroll 32")
#endif

namespace selscan::ISA {
namespace {

constexpr int PanelVectors = 16 / Lanes;
// Accumulators that fit the registers beside a row of B and a broadcast: 24 of 32, 12 of 16; 8 where vectors are plain C++.
constexpr int Accumulators = Lanes == 16 ? 24 : Lanes == 8 ? 12 : 8;
constexpr int TileRows = Lanes == 4 ? 2 : 6;
// Panels side by side: with few rows more of them, so that the latency of multiply-adds stays hidden.
constexpr int tilePanels(int rows) {
  const int fit = Accumulators / (rows * PanelVectors);
  return fit < 1 ? 1 : fit > 8 ? 8 : fit;
}

struct TileArguments {
  const uint32_t* a;
  int64_t rowStride, stepStride;  // of A, in words
  const uint32_t* b;
  int64_t panelWords, steps;
  float* c;
  int64_t cStride, columns;  // columns of C from c on; fewer than the panels hold in the last one
  bool continued;
};

template <class Multiply, int Rows, int Panels>
void tile(const TileArguments& t) {
  constexpr int Vectors = Panels * PanelVectors;
  F32 sums[Rows][Vectors];
  SELSCAN_UNROLL
  for (int r = 0; r < Rows; r++) {
    SELSCAN_UNROLL
    for (int v = 0; v < Vectors; v++) {
      const int64_t left = t.columns - v * Lanes;
      const float* from = t.c + r * t.cStride + v * Lanes;
      sums[r][v] = !t.continued || left <= 0 ? set(0.0f) : left >= Lanes ? load(from) : load(from, static_cast<int>(left));
    }
  }
  const uint32_t *a = t.a, *b = t.b;
  for (int64_t step = 0; step < t.steps; step++, a += t.stepStride, b += 16) {
    typename Multiply::Right right[Vectors];
    SELSCAN_UNROLL
    for (int v = 0; v < Vectors; v++)
      right[v] = Multiply::right(b + v / PanelVectors * t.panelWords + v % PanelVectors * Lanes);
    SELSCAN_UNROLL
    for (int r = 0; r < Rows; r++) {
      const auto left = Multiply::left(a + r * t.rowStride);
      SELSCAN_UNROLL
      for (int v = 0; v < Vectors; v++) sums[r][v] = Multiply::add(left, right[v], sums[r][v]);
    }
  }
  SELSCAN_UNROLL
  for (int r = 0; r < Rows; r++) {
    SELSCAN_UNROLL
    for (int v = 0; v < Vectors; v++) {
      const int64_t left = t.columns - v * Lanes;
      float* to = t.c + r * t.cStride + v * Lanes;
      if (left >= Lanes) store(to, sums[r][v]);
      else if (left > 0) store(to, sums[r][v], static_cast<int>(left));
    }
  }
}

using TileFunction = void (*)(const TileArguments&);

// tile<Multiply, rows, panels> for run-time sizes.
template <class Multiply, int Rows, int Panels>
TileFunction findPanels(int panels) {
  if (panels == Panels) return tile<Multiply, Rows, Panels>;
  if constexpr (Panels > 1) return findPanels<Multiply, Rows, Panels - 1>(panels);
  return nullptr;
}
template <class Multiply, int Rows = TileRows>
TileFunction findTile(int rows, int panels) {
  if (rows == Rows) return findPanels<Multiply, Rows, tilePanels(Rows)>(panels);
  if constexpr (Rows > 1) return findTile<Multiply, Rows - 1>(rows, panels);
  return nullptr;
}

// A's rows [row, rowEnd) and steps [step, step + steps) as words: A itself where it can be read in place, else a copy.
template <class Multiply>
TileArguments leftWords(const cpu::Product& product, const cpu::Block& block, int64_t step, int64_t steps) {
  const cpu::Left& a = product.a;
  TileArguments t{};
  if (!Multiply::Halves && a.innerStride == 1) {
    t.a = reinterpret_cast<const uint32_t*>(a.data + block.row * a.rowStride + step);
    t.rowStride = a.rowStride;
    t.stepStride = 1;
    return t;
  }
  uint32_t* packed = cpu::packedRows();
  t.a = packed;
  const int64_t rows = block.rowEnd - block.row;
  if constexpr (Multiply::Halves) {
    const int64_t inner = product.b.inner;
    cpu::packPairs(a, block, {step * 2, (step + steps) * 2 < inner ? (step + steps) * 2 : inner}, packed);
    t.rowStride = a.innerStride == 1 ? cpu::StepBlock : 1;
    t.stepStride = a.innerStride == 1 ? 1 : cpu::RowBlock;
  } else {
    for (int64_t k = 0; k < steps; k++)
      std::memcpy(packed + k * cpu::RowBlock, a.data + (step + k) * a.innerStride + block.row, sizeof(float) * rows);
    t.rowStride = 1;
    t.stepStride = cpu::RowBlock;
  }
  return t;
}

template <class Multiply>
void blockProduct(const cpu::Product& product, const cpu::Block& block) {
  const cpu::Panels& b = product.b;
  const int64_t rows = block.rowEnd - block.row, all = b.steps();
  const int wide = tilePanels(rows < TileRows ? static_cast<int>(rows) : TileRows);
  for (int64_t step = 0; step < all; step += cpu::StepBlock) {
    const int64_t steps = all - step < cpu::StepBlock ? all - step : cpu::StepBlock;
    TileArguments t = leftWords<Multiply>(product, block, step, steps);
    const uint32_t* a = t.a;
    t.panelWords = b.panelWords();
    t.steps = steps;
    t.cStride = product.cStride;
    t.continued = product.continued || step > 0;
    for (int64_t panel = block.panel; panel < block.panelEnd; panel += wide) {
      const int panels = block.panelEnd - panel < wide ? static_cast<int>(block.panelEnd - panel) : wide;
      t.b = b.words + panel * t.panelWords + step * cpu::PanelWidth;
      t.columns = b.columns - panel * cpu::PanelWidth;
      for (int64_t r = 0; r < rows; r += TileRows) {
        t.a = a + r * t.rowStride;
        t.c = product.c + (block.row + r) * product.cStride + panel * cpu::PanelWidth;
        findTile<Multiply>(rows - r < TileRows ? static_cast<int>(rows - r) : TileRows, panels)(t);
      }
    }
  }
}

}  // namespace
}  // namespace selscan::ISA
#undef SELSCAN_UNROLL
