// The blocked product over 32 × 32 squares of four tiles; gemm_amx.cpp includes it once for each tile type, so no guard.
namespace selscan::ISA {
namespace {

// C's square += 32 rows of A · two panels of B.
template <class Tiles>
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
  for (int64_t step = 0; step < s.steps; step += Half) {
    Tiles::template load<4>(s.a + step, cpu::StepBlock);
    Tiles::template load<5>(s.a + step + Half * cpu::StepBlock, cpu::StepBlock);
    Tiles::template load<6>(s.left + step * Half, Half);
    Tiles::template load<7>(s.right + step * Half, Half);
    Tiles::template multiply<0, 4, 6>();
    Tiles::template multiply<1, 4, 7>();
    Tiles::template multiply<2, 5, 6>();
    Tiles::template multiply<3, 5, 7>();
  }
  Tiles::template store<0>(upper, s.cStride);
  Tiles::template store<1>(upper + Half, s.cStride);
  Tiles::template store<2>(lower, s.cStride);
  Tiles::template store<3>(lower + Half, s.cStride);
}

template <class Tiles>
void productSquares(const cpu::Product& product, const cpu::Block& block) {
  const cpu::Panels& b = product.b;
  const int64_t rows = block.rowEnd - block.row, all = b.steps(), panelWords = b.panelWords();
  alignas(64) float whole[cpu::Side][cpu::Side];
  Tiles::begin();
  for (int64_t step = 0; step < all; step += cpu::StepBlock) {
    const int64_t end = all - step < cpu::StepBlock ? b.inner : (step + cpu::StepBlock) * 2;
    const uint32_t* a = cpu::packTileRows(product, block, {step * 2, end < b.inner ? end : b.inner});
    cpu::SquareArguments s{};
    s.steps = all - step < cpu::StepBlock ? all - step : cpu::StepBlock;
    s.continued = product.continued || step > 0;
    for (int64_t panel = block.panel; panel < block.panelEnd; panel += 2) {
      s.left = b.words + panel * panelWords + step * cpu::PanelWidth;
      s.right = panel + 1 < block.panelEnd ? s.left + panelWords : s.left;  // alone: computed twice, stored once
      const int64_t mine = (panel + 1 < block.panelEnd ? 2 : 1) * cpu::PanelWidth;
      const int64_t left = b.columns - panel * cpu::PanelWidth, columns = left < mine ? left : mine;
      for (int64_t r = 0; r < rows; r += cpu::Side) {
        s.a = a + r * cpu::StepBlock;
        float* c = product.c + (block.row + r) * product.cStride + panel * cpu::PanelWidth;
        const cpu::Corner corner{c, product.cStride, rows - r < cpu::Side ? rows - r : cpu::Side, columns};
        const bool inside = corner.rows == cpu::Side && columns == cpu::Side;
        s.c = inside ? c : whole[0];
        s.cStride = inside ? product.cStride : cpu::Side;
        if (!inside && s.continued) corner.read(whole);
        square<Tiles>(s);
        if (!inside) corner.write(whole);
      }
    }
  }
  Tiles::end();
}

}  // namespace
}  // namespace selscan::ISA
