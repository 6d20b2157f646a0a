// The blocked product over 32 × 32 squares of four tiles; gemm_amx.cpp includes it once for each tile type, so no guard.
namespace selscan::ISA {
namespace {

// C's square += 32 rows of A · two panels of B. Products: 1 of bf16, 2 of A's halves, 3 of both sides' halves.
template <class Tiles, int Products>
void square(const cpu::SquareArguments& s) {
  constexpr int64_t Half = cpu::TileSide;
  float *upper = s.c, *lower = s.c + Half * s.cStride;
  if (s.continued) {
    Tiles::template load<0>(upper, s.cStride);
    Tiles::template load<1>(upper + Half, s.cStride);
    Tiles::template load<2>(lower, s.cStride);
    Tiles::template load<3>(lower + Half, s.cStride);
  } else {
    Tiles::template zero<0>();
    Tiles::template zero<1>();
    Tiles::template zero<2>();
    Tiles::template zero<3>();
  }
  const auto rowsFrom = [](const uint32_t* a) {
    Tiles::template load<4>(a, cpu::StepBlock);
    Tiles::template load<5>(a + Half * cpu::StepBlock, cpu::StepBlock);
  };
  const auto panelsFrom = [](const uint32_t* left, const uint32_t* right) {
    Tiles::template load<6>(left, Half);
    Tiles::template load<7>(right, Half);
  };
  const auto add = [] {
    Tiles::template multiply<0, 4, 6>();
    Tiles::template multiply<1, 4, 7>();
    Tiles::template multiply<2, 5, 6>();
    Tiles::template multiply<3, 5, 7>();
  };
  // A group of 32 k: 16 steps, or as many again of the lower halves behind them. Each product after the first loads one side anew.
  constexpr int64_t Group = Products == 1 ? Half : 2 * Half, PanelWords = (Products == 3 ? 2 : 1) * Half * Half;
  const uint32_t *a = s.a, *left = s.left, *right = s.right;
  for (int64_t step = 0; step < s.steps; step += Group, a += Group, left += PanelWords, right += PanelWords) {
    rowsFrom(a + (Group - Half));
    panelsFrom(left, right);
    add();
    if constexpr (Products > 1) {
      rowsFrom(a);
      add();
    }
    if constexpr (Products > 2) {
      panelsFrom(left + Half * Half, right + Half * Half);
      add();
    }
  }
  Tiles::template store<0>(upper, s.cStride);
  Tiles::template store<1>(upper + Half, s.cStride);
  Tiles::template store<2>(lower, s.cStride);
  Tiles::template store<3>(lower + Half, s.cStride);
}

// One square of C and its sums over the steps that s.steps counts.
template <class Tiles, int Products>
void cornerSquare(cpu::SquareArguments s, const cpu::Corner& corner) {
  alignas(64) float whole[cpu::Side][cpu::Side];
  if (corner.rows == cpu::Side && corner.columns == cpu::Side) return square<Tiles, Products>(s);
  s.c = whole[0];
  s.cStride = cpu::Side;
  if (s.continued) corner.read(whole);
  square<Tiles, Products>(s);
  corner.write(whole);
}

template <class Tiles, int Products>
void productSquares(const cpu::Product& product, const cpu::Block& block) {
  const cpu::Panels& b = product.b;
  const int64_t rows = block.rowEnd - block.row, all = b.steps(), panelWords = b.panelWords();
  Tiles::begin();
  for (int64_t part = 0; part < all; part += cpu::PackedSteps) {
    const uint32_t* a = cpu::leftRows(product, block, part, cpu::Side);
    const int64_t partEnd = all - part < cpu::PackedSteps ? all : part + cpu::PackedSteps;
    for (int64_t panel = block.panel; panel < block.panelEnd; panel += 2) {
      const bool two = panel + 1 < block.panelEnd;  // one alone is computed twice and stored once
      const int64_t left = b.columns - panel * cpu::PanelWidth, mine = (two ? 2 : 1) * cpu::PanelWidth;
      for (int64_t step = part; step < partEnd; step += cpu::StepBlock) {
        cpu::SquareArguments s{};
        s.left = b.words + panel * panelWords + (Products == 2 ? step / 2 : step) * cpu::PanelWidth;
        s.right = two ? s.left + panelWords : s.left;
        s.steps = partEnd - step < cpu::StepBlock ? partEnd - step : cpu::StepBlock;
        s.cStride = product.cStride;
        s.continued = product.continued || step > 0;
        for (int64_t r = 0; r < rows; r += cpu::Side) {
          s.a = a + cpu::packedWords(step - part) + r * cpu::StepBlock;
          s.c = product.c + (block.row + r) * product.cStride + panel * cpu::PanelWidth;
          cornerSquare<Tiles, Products>(s, {s.c, s.cStride, rows - r < cpu::Side ? rows - r : cpu::Side, left < mine ? left : mine});
        }
      }
    }
  }
  Tiles::end();
}

template <class Tiles>
void productOverTiles(const cpu::Product& product, const cpu::Block& block) {
  const cpu::Precision precision = product.b.precision;
  const auto run = precision == cpu::Precision::bf16x3   ? productSquares<Tiles, 3>
                   : precision == cpu::Precision::bf16x2 ? productSquares<Tiles, 2>
                                                         : productSquares<Tiles, 1>;
  run(product, block);
}

}  // namespace
}  // namespace selscan::ISA
