// The blocked product of cpu/gemm_int8.h over register tiles, compiled once for each instruction set; included inside the target
// regions of gemm_int8.cpp and gemm_int8_vnni.cpp, so it has no guard. Dots says what four k of a column are:
//
//   Dots::Words                        words of A for four k
//   Dots::pack(p, words)               32 numbers of A, as words
//   Dots::right(const uint32_t*)       Lanes words of B
//   Dots::start(int32_t)               a whole number in all lanes
//   Dots::add(words, right, sum)       sum + four products per lane
//   Dots::floats(sum)                  F32 of it, rounded to nearest

namespace selscan::ISA {
namespace {

constexpr int PanelVectors = 16 / Lanes;
// Sums that fit the registers twice, as whole numbers of a group and as floats, beside a word of B and its halves.
constexpr int Accumulators = Lanes == 16 ? 12 : Lanes == 8 ? 6 : 8;
constexpr int TileRows = Lanes == 16 ? 6 : Lanes == 8 ? 3 : 2;
// Panels side by side: with few rows more of them, so that the latency of products stays hidden.
constexpr int tilePanels(int rows) {
  const int fit = Accumulators / (rows * PanelVectors);
  return fit < 1 ? 1 : fit > 4 ? 4 : fit;
}

// 32 numbers of a row of A.
template <class Dots>
struct Group {
  float scale;
  int32_t start;  // −128·Σp
  uint32_t words[8 * Dots::Words];
};

#if defined(SELSCAN_AVX512)
inline void storeBytes(int8_t* to, F32 x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(x.v)));
}
#elif defined(SELSCAN_AVX2)
inline void storeBytes(int8_t* to, F32 x) {
  const __m256i whole = _mm256_cvtps_epi32(x.v);
  const __m128i halves = _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_packs_epi16(halves, halves));
}
#else
inline void storeBytes(int8_t* to, F32 x) {
  for (int i = 0; i < Lanes; i++) to[i] = static_cast<int8_t>(x.v[i]);
}
#endif

// Rounds count ≤ 32 numbers.
template <class Dots>
void roundGroup(const float* x, int64_t count, Group<Dots>& to) {
  constexpr int Vectors = cpu::GroupSize / Lanes;
  constexpr float Smallest = 0x1p-100f;
  F32 value[Vectors], greatest = set(0.0f);
  bool finite = true;  // not by the greatest: max lets a NaN slip
  SELSCAN_UNROLL
  for (int i = 0; i < Vectors; i++) {
    const int64_t left = count - i * Lanes;
    value[i] = left >= Lanes ? load(x + i * Lanes) : left > 0 ? load(x + i * Lanes, static_cast<int>(left)) : set(0.0f);
    greatest = max(greatest, abs(value[i]));
    finite &= allFinite(value[i]);
  }
  const float top = maximum(greatest);
  if (!finite || top <= Smallest) {
    to = {finite ? 0.0f : NAN, 0, {}};
    return;
  }
  const F32 inverse = set(127.0f / top);
  F32 total = set(0.0f);
  alignas(64) int8_t bytes[cpu::GroupSize];
  SELSCAN_UNROLL
  for (int i = 0; i < Vectors; i++) {
    const F32 whole = round(value[i] * inverse);
    total = total + whole;
    storeBytes(bytes + i * Lanes, whole);
  }
  to.scale = top / 127.0f;
  to.start = -128 * static_cast<int32_t>(sum(total));
  Dots::pack(bytes, to.words);
}

template <class Dots>
struct Int8Tile {
  const Group<Dots>* a;
  int64_t rowGroups;  // from one row of A to the next
  // The next block of B is fetched meanwhile, as in gemm_block.h: of its groups the lines [line, lineEnd) of 8.
  const uint32_t *b, *ahead;
  int64_t line, lineEnd;
  const uint16_t* scales;
  int64_t panelWords, panelScales, groups;
  float* c;
  int64_t cStride, columns;  // columns of C from c on; fewer than the panels hold in the last one
  bool continued;
};

template <class Dots, int Rows, int Panels>
void int8Tile(const Int8Tile<Dots>& t) {
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
  const uint32_t* b = t.b;
  const uint16_t* scales = t.scales;
  for (int64_t group = 0; group < t.groups; group++, b += 8 * 16, scales += 16) {
    const Group<Dots>* a = t.a + group;
    typename Dots::Sum whole[Rows][Vectors];
    for (int64_t line = t.line; line < t.lineEnd; line++) {
      SELSCAN_UNROLL
      for (int panel = 0; panel < Panels; panel++)
        __builtin_prefetch(t.ahead + panel * t.panelWords + group * 8 * 16 + line * 16, 0, 2);
    }
    SELSCAN_UNROLL
    for (int r = 0; r < Rows; r++) {
      SELSCAN_UNROLL
      for (int v = 0; v < Vectors; v++) whole[r][v] = Dots::start(a[r * t.rowGroups].start);
    }
    const auto addStep = [&](int step) {
      typename Dots::Right right[Vectors];
      SELSCAN_UNROLL
      for (int v = 0; v < Vectors; v++)
        right[v] = Dots::right(b + v / PanelVectors * t.panelWords + v % PanelVectors * Lanes + step * 16);
      SELSCAN_UNROLL
      for (int r = 0; r < Rows; r++) {
        const uint32_t* left = a[r * t.rowGroups].words + step * Dots::Words;
        SELSCAN_UNROLL
        for (int v = 0; v < Vectors; v++) whole[r][v] = Dots::add(left, right[v], whole[r][v]);
      }
    };
    if constexpr (Dots::Words == 1) {
      SELSCAN_UNROLL
      for (int step = 0; step < 8; step++) addStep(step);
    } else {  // the halves of all eight would not fit the registers: unrolled, 0.43 of the speed on AVX-512, 0.7 on AVX2
      for (int step = 0; step < 8; step++) addStep(step);
    }
    SELSCAN_UNROLL
    for (int v = 0; v < Vectors; v++) {
      const F32 scale = loadBf16(scales + v / PanelVectors * t.panelScales + v % PanelVectors * Lanes);
      SELSCAN_UNROLL
      for (int r = 0; r < Rows; r++)
        sums[r][v] = fma(Dots::floats(whole[r][v]), scale * set(a[r * t.rowGroups].scale), sums[r][v]);
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

template <class Dots>
using Int8TileFunction = void (*)(const Int8Tile<Dots>&);

// int8Tile<Dots, rows, panels> for run-time sizes.
template <class Dots, int Rows, int Panels>
Int8TileFunction<Dots> findPanels(int panels) {
  if (panels == Panels) return int8Tile<Dots, Rows, Panels>;
  if constexpr (Panels > 1) return findPanels<Dots, Rows, Panels - 1>(panels);
  return nullptr;
}
template <class Dots, int Rows = TileRows>
Int8TileFunction<Dots> findTile(int rows, int panels) {
  if (rows == Rows) return findPanels<Dots, Rows, tilePanels(Rows)>(panels);
  if constexpr (Rows > 1) return findTile<Dots, Rows - 1>(rows, panels);
  return nullptr;
}

template <class Dots>
void int8Block(const cpu::Product& product, const cpu::Block& block) {
  const cpu::Panels& b = product.b;
  const auto [strips, height, lastHeight] = cpu::stripsOf(block, TileRows);
  const int wide = tilePanels(height);
  const int64_t all = b.groups();
  for (int64_t group = 0; group < all; group += cpu::GroupBlock) {
    const int64_t groups = all - group < cpu::GroupBlock ? all - group : cpu::GroupBlock;
    Int8Tile<Dots> t{};
    const Group<Dots>* a = reinterpret_cast<const Group<Dots>*>(product.rounded) + (product.roundedRow + block.row) * all + group;
    t.rowGroups = all;
    t.groups = groups;
    t.panelWords = b.panelWords();
    t.panelScales = all * cpu::PanelWidth;
    t.cStride = product.cStride;
    t.continued = product.continued || group > 0;
    for (int64_t panel = block.panel; panel < block.panelEnd; panel += wide) {
      const int panels = block.panelEnd - panel < wide ? static_cast<int>(block.panelEnd - panel) : wide;
      const Int8TileFunction<Dots> full = findTile<Dots>(height, panels), last = findTile<Dots>(lastHeight, panels);
      t.b = b.words + panel * t.panelWords + group * 8 * cpu::PanelWidth;
      t.scales = b.scales + panel * t.panelScales + group * cpu::PanelWidth;
      t.columns = b.columns - panel * cpu::PanelWidth;
      t.ahead = b.words + (panel + panels) % b.count() * t.panelWords + group * 8 * cpu::PanelWidth;
      for (int strip = 0; strip < strips; strip++) {
        t.line = strips == 1 ? 8 : strip * 8 / strips;  // none with one strip, which they only delay: 0.8 of the speed
        t.lineEnd = (strip + 1) * 8 / strips;
        t.a = a + strip * height * t.rowGroups;
        t.c = product.c + (block.row + strip * height) * product.cStride + panel * cpu::PanelWidth;
        (strip + 1 < strips ? full : last)(t);
      }
    }
  }
}

// Rounds rows [begin, end) of A into their place in `to`.
template <class Dots>
void roundRows(const cpu::Product& product, cpu::Range rows, std::byte* to) {
  static_assert(sizeof(Group<Dots>) <= cpu::GroupBytes);
  const int64_t inner = product.b.inner, groups = product.b.groups();
  Group<Dots>* line = reinterpret_cast<Group<Dots>*>(to) + rows.begin * groups;
  for (int64_t row = rows.begin; row < rows.end; row++, line += groups) {
    const float* x = product.a.data + row * product.a.rowStride;
    for (int64_t k = 0; k < inner; k += cpu::GroupSize)
      roundGroup<Dots>(x + k, inner - k < cpu::GroupSize ? inner - k : cpu::GroupSize, line[k / cpu::GroupSize]);
  }
}

}  // namespace
}  // namespace selscan::ISA
