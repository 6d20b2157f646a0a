// The blocked product over register tiles, compiled once for each instruction set; included inside the target regions of
// gemm.cpp and gemm_avx512bf16.cpp, so it has no guard. Multiply says what a step of k is:
//
//   Multiply::left(const uint32_t*)    one word of A in all lanes
//   Multiply::right(const uint32_t*)   Lanes words of B
//   Multiply::add(left, right, sum)    sum + left·right

namespace selscan::ISA {
namespace {

constexpr int PanelVectors = 16 / Lanes;
// Accumulators that fit the registers beside a row of B and a broadcast: 24 of 32, 12 of 16; 8 where vectors are plain C++.
constexpr int Accumulators = Lanes == 16 ? 24 : Lanes == 8 ? 12 : 8;
constexpr int TileRows = Lanes == 16 ? 12 : Lanes == 8 ? 6 : 2;
// Panels side by side: with few rows more of them, so that the latency of multiply-adds stays hidden.
constexpr int tilePanels(int rows) {
  const int fit = Accumulators / (rows * PanelVectors);
  return fit < 1 ? 1 : fit > 8 ? 8 : fit;
}

struct TileArguments {
  const uint32_t* a;  // rows StepBlock words apart
  // The next block of B is fetched meanwhile, for processors foresee no stream across pages: of each of its panels `advance` words from
  // `ahead` on for every step of this one, so that all strips of rows together fetch it once.
  const uint32_t *b, *ahead;
  int64_t advance;
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
  for (int64_t step = 0; step < t.steps; step++, a++, b += 16) {
    SELSCAN_UNROLL
    for (int p = 0; p < Panels; p++) __builtin_prefetch(t.ahead + p * t.panelWords + step * t.advance, 0, 2);
    typename Multiply::Right right[Vectors];
    SELSCAN_UNROLL
    for (int v = 0; v < Vectors; v++)
      right[v] = Multiply::right(b + v / PanelVectors * t.panelWords + v % PanelVectors * Lanes);
    SELSCAN_UNROLL
    for (int r = 0; r < Rows; r++) {
      const auto left = Multiply::left(a + r * cpu::StepBlock);
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

template <class Multiply>
void blockProduct(const cpu::Product& product, const cpu::Block& block) {
  const cpu::Panels& b = product.b;
  const auto [strips, height, lastHeight] = cpu::stripsOf(block, TileRows);
  const int wide = tilePanels(height);
  const int64_t all = b.steps();
  TileArguments t{};
  t.advance = 16 / strips;
  t.panelWords = b.panelWords();
  t.cStride = product.cStride;
  for (int64_t part = 0; part < all; part += cpu::PackedSteps) {
    const uint32_t* a = cpu::leftRows(product, block, part, 1);
    const int64_t partEnd = all - part < cpu::PackedSteps ? all : part + cpu::PackedSteps;
    for (int64_t panel = block.panel; panel < block.panelEnd; panel += wide) {
      const int panels = block.panelEnd - panel < wide ? static_cast<int>(block.panelEnd - panel) : wide;
      const TileFunction full = findTile<Multiply>(height, panels), last = findTile<Multiply>(lastHeight, panels);
      t.columns = b.columns - panel * cpu::PanelWidth;
      for (int64_t step = part; step < partEnd; step += cpu::StepBlock) {
        t.steps = partEnd - step < cpu::StepBlock ? partEnd - step : cpu::StepBlock;
        t.b = b.words + panel * t.panelWords + step * cpu::PanelWidth;
        t.continued = product.continued || step > 0;
        const bool below = step + cpu::StepBlock < partEnd;
        const uint32_t* next = below ? t.b + cpu::StepBlock * cpu::PanelWidth
                                     : b.words + (panel + panels) % b.count() * t.panelWords + part * cpu::PanelWidth;
        for (int strip = 0; strip < strips; strip++) {
          t.ahead = next + strip * t.steps * t.advance;
          t.a = a + cpu::packedWords(step - part) + strip * height * cpu::StepBlock;
          t.c = product.c + (block.row + strip * height) * product.cStride + panel * cpu::PanelWidth;
          (strip + 1 < strips ? full : last)(t);
        }
      }
    }
  }
}

}  // namespace
}  // namespace selscan::ISA
