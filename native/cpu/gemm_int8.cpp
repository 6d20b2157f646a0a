// The products of weights in 8 bits (gemm_int8.h) without instructions for them, their choice, and the forms of weights.
//
// Four k of a column are two pairs of 16 bits each, of k 0 and 2 and of k 1 and 3, which vpmaddwd multiplies and adds with room to
// spare: 2·255·127 is below 2^16. (vpmaddubsw would take half the instructions, and saturates at 2^15.)
// Register tiles of 6 rows × 2 panels on AVX-512, 3 × 1 on AVX2; with one row four panels, whose reading is what bounds it.
#include "cpu/gemm_int8.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "cpu/gemm_kernels.h"

#define EACH_ISA "cpu/gemm_int8.cpp"
#include "cpu/each_isa.h"

#ifdef ISA
#include "cpu/gemm_int8_block.h"
namespace selscan::ISA {
namespace {

struct PairDots {
  static constexpr int Words = 2;
  // The pairs of p that meet those of right(): k 0 and 2, then k 1 and 3.
  static void pack(const int8_t* p, uint32_t* words) {
    const auto pair = [](int low, int high) {
      return static_cast<uint32_t>(static_cast<uint16_t>(low)) | static_cast<uint32_t>(static_cast<uint16_t>(high)) << 16;
    };
    for (int i = 0; i < 8; i++, p += 4) {
      words[2 * i] = pair(p[0], p[2]);
      words[2 * i + 1] = pair(p[1], p[3]);
    }
  }
#if defined(SELSCAN_AVX512)
  using Sum = __m512i;
  struct Right {
    __m512i even, odd;
  };
  static Right right(const uint32_t* words) {
    const __m512i four = _mm512_loadu_si512(words);
    return {_mm512_and_si512(four, _mm512_set1_epi16(255)), _mm512_srli_epi16(four, 8)};
  }
  static Sum start(int32_t whole) { return _mm512_set1_epi32(whole); }
  static Sum add(const uint32_t* left, const Right& right, Sum sum) {
    const __m512i even = _mm512_madd_epi16(right.even, _mm512_set1_epi32(static_cast<int>(left[0])));
    const __m512i odd = _mm512_madd_epi16(right.odd, _mm512_set1_epi32(static_cast<int>(left[1])));
    return _mm512_add_epi32(_mm512_add_epi32(even, odd), sum);
  }
  static F32 floats(Sum sum) { return {_mm512_cvtepi32_ps(sum)}; }
#elif defined(SELSCAN_AVX2)
  using Sum = __m256i;
  struct Right {
    __m256i even, odd;
  };
  static Right right(const uint32_t* words) {
    const __m256i four = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(words));
    return {_mm256_and_si256(four, _mm256_set1_epi16(255)), _mm256_srli_epi16(four, 8)};
  }
  static Sum start(int32_t whole) { return _mm256_set1_epi32(whole); }
  static Sum add(const uint32_t* left, const Right& right, Sum sum) {
    const __m256i even = _mm256_madd_epi16(right.even, _mm256_set1_epi32(static_cast<int>(left[0])));
    const __m256i odd = _mm256_madd_epi16(right.odd, _mm256_set1_epi32(static_cast<int>(left[1])));
    return _mm256_add_epi32(_mm256_add_epi32(even, odd), sum);
  }
  static F32 floats(Sum sum) { return {_mm256_cvtepi32_ps(sum)}; }
#else
  struct Sum {
    int32_t v[Lanes];
  };
  struct Right {
    uint32_t v[Lanes];
  };
  static Right right(const uint32_t* words) {
    Right right;
    std::memcpy(right.v, words, sizeof right.v);
    return right;
  }
  static Sum start(int32_t whole) {
    Sum sum;
    for (int i = 0; i < Lanes; i++) sum.v[i] = whole;
    return sum;
  }
  static Sum add(const uint32_t* left, const Right& right, Sum sum) {
    const auto low = [](uint32_t word) { return static_cast<int32_t>(static_cast<int16_t>(word)); };
    for (int i = 0; i < Lanes; i++) {
      const auto byte = [&](int k) { return static_cast<int32_t>(right.v[i] >> 8 * k & 255); };
      sum.v[i] += byte(0) * low(left[0]) + byte(1) * low(left[1]) + byte(2) * low(left[0] >> 16) + byte(3) * low(left[1] >> 16);
    }
    return sum;
  }
  static F32 floats(const Sum& sum) {
    F32 out;
    for (int i = 0; i < Lanes; i++) out.v[i] = static_cast<float>(sum.v[i]);
    return out;
  }
#endif
};

}  // namespace

void productInt8(const cpu::Product& product, const cpu::Block& block) { int8Block<PairDots>(product, block); }
void roundInt8(const cpu::Product& product, cpu::Range rows, std::byte* to) { roundRows<PairDots>(product, rows, to); }

}  // namespace selscan::ISA
#else
namespace selscan::cpu {

namespace {

struct Int8Kernel {
  BlockProduct product;
  void (*round)(const Product&, Range rows, std::byte* to);
};

// SELSCAN_VNNI=off leaves out what is of newer processors than the instruction set says, for tests.
Int8Kernel choose() {
#if SELSCAN_X86
  const Isa level = isa();
  const char* asked = std::getenv("SELSCAN_VNNI");
  const bool vnni = !(asked && std::strcmp(asked, "off") == 0);
  if (level >= Isa::avx512)
    return vnni && __builtin_cpu_supports("avx512vnni") ? Int8Kernel{avx512vnni::productInt8, avx512vnni::roundInt8}
                                                        : Int8Kernel{avx512::productInt8, avx512::roundInt8};
  if (level >= Isa::avx2)
    return vnni && __builtin_cpu_supports("avxvnni") ? Int8Kernel{avxvnni::productInt8, avxvnni::roundInt8}
                                                     : Int8Kernel{avx2::productInt8, avx2::roundInt8};
#endif
  return {portable::productInt8, portable::roundInt8};
}

const Int8Kernel& kernel() {
  static const Int8Kernel chosen = choose();
  return chosen;
}

Panels shapeOf(const Tensor& weight) { return {Precision::int8, weight[1], weight[0]}; }

// Four k of a row, as they lie in a panel: q + 128 is q with its highest bit turned. Beyond the row 0.
uint32_t fourOf(const std::byte* row, int64_t k, int64_t in) {
  uint32_t word = 0;
  std::memcpy(&word, row + k, static_cast<size_t>(std::min<int64_t>(4, in - k)));
  return word ^ 0x80808080u;
}

void packInt8(const Tensor& weight, std::byte* to, Device&) {
  const Panels panels = shapeOf(weight);
  const int64_t in = panels.inner, steps = panels.groups() * 8;
  parallel(panels.count(), [&](int64_t panel) {
    auto* words = reinterpret_cast<uint32_t*>(to) + panel * panels.panelWords();
    const int64_t rows = std::min(PanelWidth, panels.columns - panel * PanelWidth);
    const std::byte* first = weight.data + panel * PanelWidth * in;
    for (int64_t step = 0; step < steps; step++)
      for (int64_t lane = 0; lane < PanelWidth; lane++)
        words[step * PanelWidth + lane] = lane < rows && step * 4 < in ? fourOf(first + lane * in, step * 4, in) : 0x80808080u;
  });
}

void unpackInt8(const std::byte* prepared, const Tensor& to) {
  const Panels panels = shapeOf(to);
  const int64_t in = panels.inner;
  parallel(panels.count(), [&](int64_t panel) {
    const auto* words = reinterpret_cast<const uint32_t*>(prepared) + panel * panels.panelWords();
    const int64_t rows = std::min(PanelWidth, panels.columns - panel * PanelWidth);
    for (int64_t lane = 0; lane < rows; lane++)
      for (int64_t k = 0; k < in; k += 4) {
        const uint32_t four = words[k / 4 * PanelWidth + lane] ^ 0x80808080u;
        std::memcpy(to.data + (panel * PanelWidth + lane) * in + k, &four, static_cast<size_t>(std::min<int64_t>(4, in - k)));
      }
  });
}

int64_t panelsOf(const Tensor& scales) { return (scales[0] + PanelWidth - 1) / PanelWidth; }

void packScales(const Tensor& scales, std::byte* to, Device&) {
  const int64_t groups = scales[1];
  auto* lanes = reinterpret_cast<uint16_t*>(to);
  for (int64_t at = 0; at < panelsOf(scales) * groups * PanelWidth; at++) {
    const int64_t row = at / (groups * PanelWidth) * PanelWidth + at % PanelWidth, group = at / PanelWidth % groups;
    lanes[at] = row < scales[0] ? scales.half()[row * groups + group] : 0;
  }
}

void unpackScales(const std::byte* prepared, const Tensor& to) {
  const int64_t groups = to[1];
  const auto* lanes = reinterpret_cast<const uint16_t*>(prepared);
  for (int64_t row = 0; row < to[0]; row++)
    for (int64_t group = 0; group < groups; group++)
      to.half()[row * groups + group] = lanes[(row / PanelWidth * groups + group) * PanelWidth + row % PanelWidth];
}

bool always(const Tensor&) { return true; }

}  // namespace

BlockProduct int8Product() { return kernel().product; }

size_t roundedBytes(const Tensor& weight, int64_t rows) {
  if (weight.dtype != Dtype::i8) return 0;
  return static_cast<size_t>(rows * shapeOf(weight).groups() * GroupBytes);
}

void roundAhead(Product& product, int64_t rows, std::byte* to) {
  if (product.b.precision != Precision::int8) return;
  constexpr int64_t Together = 4;
  parallel((rows + Together - 1) / Together, [&](int64_t task) {
    kernel().round(product, {task * Together, std::min(rows, (task + 1) * Together)}, to);
  });
  product.rounded = to;
}

const Preparation* int8Panels() {
  static const Preparation preparation{.name = "panels of the transpose, int8",
                                       .bytes = [](const Tensor& weight) { return shapeOf(weight).sizeBytes(); },
                                       .run = packInt8,
                                       .blockRows = PanelWidth,
                                       .holds = always,
                                       .restore = unpackInt8};
  return &preparation;
}

const Preparation* int8Scales() {
  static const Preparation preparation{
      .name = "scales of panels",
      .bytes = [](const Tensor& scales) { return static_cast<size_t>(panelsOf(scales) * scales[1] * PanelWidth) * sizeof(uint16_t); },
      .run = packScales,
      .blockRows = PanelWidth,
      .holds = always,
      .restore = unpackScales};
  return &preparation;
}

const Preparation* weightForm(const Call& call, int input, int weight, int scales, Precision otherwise) {
  if (call.inputs[weight].dtype != Dtype::i8) return input == weight ? forwardPanels(otherwise) : nullptr;
  return input == weight ? int8Panels() : input == scales ? int8Scales() : nullptr;
}

Panels weightPanels(const Call& call, int weight, int scales, Precision otherwise) {
  const Tensor& matrix = call.inputs[weight];
  return {matrix.dtype == Dtype::i8 ? Precision::int8 : otherwise, matrix[1], matrix[0],
          reinterpret_cast<const uint32_t*>(call.prepared[weight]), reinterpret_cast<const uint16_t*>(call.prepared[scales])};
}

}  // namespace selscan::cpu
#endif
