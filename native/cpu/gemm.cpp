// The matrix product of gemm.h on every processor: f32 products, and bf16 products by unpacking pairs to f32 where there
// is no instruction for them. Register tiles of 12 rows × 2 panels on AVX-512, 6 × 1 on AVX2.
//
// A task is 96 rows × some panels of C. A's block, packed once, lies in L2; two panels of B × 256 steps lie in L1 while all its
// rows pass.
// Bound by multiply-adds from some 12 rows on, by reading B below. Tried on one core of an AMD EPYC (Zen 5), 2026-11-22, bf16,
// 480×1024×1024 with A packed beforehand: tiles of 12 × 2, 8 × 3 and 6 × 4 reach 0.98, 0.95 and 0.98 of the peak, rows of A
// interleaved or 1 KB apart 0.98 and 0.96: no tile is the bottleneck. Packing A anew for every 12 to 16 panels was: 0.82 to 0.85
// at 512×1024×1024, 0.86 once for each thread and rounded by vcvtne2ps2bf16, 0.89 with the next row fetched meanwhile. With fewer rows
// than 96 B is what is waited for: fetched ahead whole instead of in the share of 8 strips, 1536×6144 in bf16 went from 229 to 411
// GFLOP/s with 16 rows, 294 to 419 with 32.
#include "cpu/gemm.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "cpu/gemm_int8.h"
#include "cpu/gemm_kernels.h"

#define EACH_ISA "cpu/gemm.cpp"
#include "cpu/each_isa.h"

#ifdef ISA
#include "cpu/gemm_block.h"
namespace selscan::ISA {
namespace {

struct MultiplyF32 {
  using Right = F32;
  static F32 left(const uint32_t* word) {
    float value;
    std::memcpy(&value, word, sizeof value);
    return set(value);
  }
  static F32 right(const uint32_t* words) { return load(reinterpret_cast<const float*>(words)); }
  static F32 add(F32 left, F32 right, F32 sum) { return fma(left, right, sum); }
};

// The two f32 of a pair of bf16, in every lane.
struct Pair {
  F32 even, odd;
};
struct MultiplyPairs {
  using Right = Pair;
  static Pair left(const uint32_t* word) {
    return {set(fromBf16(static_cast<uint16_t>(*word))), set(fromBf16(static_cast<uint16_t>(*word >> 16)))};
  }
  static Pair right(const uint32_t* words) {
    const F32 pairs = load(reinterpret_cast<const float*>(words));
    return {lowHalf(pairs), highHalf(pairs)};
  }
  static F32 add(const Pair& left, const Pair& right, F32 sum) {
    return fma(left.odd, right.odd, fma(left.even, right.even, sum));
  }
};

}  // namespace

void productF32(const cpu::Product& product, const cpu::Block& block) { blockProduct<MultiplyF32>(product, block); }
void productPairs(const cpu::Product& product, const cpu::Block& block) { blockProduct<MultiplyPairs>(product, block); }

}  // namespace selscan::ISA
#else
namespace selscan::cpu {

// The product over tiles; null where there are none.
static BlockProduct overTiles() {
  const char* amx = std::getenv("SELSCAN_AMX");
  if (amx && std::strcmp(amx, "emulate") == 0) return productTilesEmulated;
#if SELSCAN_X86
  if (isa() >= Isa::amx) return amx::productTiles;
#endif
  return nullptr;
}

static BlockProduct choose(Precision precision) {
  const bool half = precision == Precision::bf16;
  if (half && overTiles()) return overTiles();
#if SELSCAN_X86
  const Isa level = isa();
  if (half && level >= Isa::avx512bf16) return avx512bf16::productDots;
  if (level >= Isa::avx512) return half ? avx512::productPairs : avx512::productF32;
  if (level >= Isa::avx2) return half ? avx2::productPairs : avx2::productF32;
#endif
  return half ? portable::productPairs : portable::productF32;
}

BlockProduct blockProduct(Precision precision) {
  static const BlockProduct products[] = {choose(Precision::f32), choose(Precision::bf16), int8Product(), overTiles(), overTiles()};
  return products[static_cast<int>(precision)];
}

Precision productsOf(const Attributes& attributes, Dtype right) {
  const std::string& word = attributes.word("precision");
  if (word == "bf16") return Precision::bf16;
  if (word != "bf16x3" || !blockProduct(Precision::bf16x3)) return Precision::f32;
  return right == Dtype::bf16 ? Precision::bf16x2 : Precision::bf16x3;
}

uint64_t newProduct() {
  static std::atomic<uint64_t> last{0};
  return last.fetch_add(1, std::memory_order_relaxed) + 1;
}

namespace {
// A thread's packed A, and of which product, rows and steps it is.
struct alignas(64) PackedRoom {
  uint32_t words[packedWords(PackedSteps)];
  uint64_t id = 0;
  int64_t row = 0, step = 0;
};
}  // namespace

const uint32_t* leftRows(const Product& product, const Block& block, int64_t step, int64_t multiple) {
  if (product.packed)
    return product.packed + block.row / RowBlock * packedWords(product.b.steps()) + block.row % RowBlock * StepBlock + packedWords(step);
  static thread_local std::unique_ptr<PackedRoom> made;  // a pointer: thread-local memory itself is had by threads that multiply nothing
  if (!made) made.reset(new PackedRoom);
  PackedRoom& room = *made;
  if (product.id != 0 && room.id == product.id && room.row == block.row && room.step == step) return room.words;
  const int64_t each = perStep(product.b.precision), end = (step + PackedSteps) * each;
  packRows(product.a, product.b.precision, {block.row, block.rowEnd}, {step * each, end < product.b.inner ? end : product.b.inner},
           multiple, room.words);
  room.id = product.id;
  room.row = block.row;
  room.step = step;
  return room.words;
}

template <Precision P, bool Forward>
static Panels shapeOf(const Tensor& weight) {
  return Forward ? Panels{P, weight[1], weight[0]} : Panels{P, weight[0], weight[1]};
}
constexpr const char* nameOf(Precision precision, bool forward) {
  if (precision == Precision::f32) return forward ? "panels of the transpose, f32" : "panels, f32";
  if (precision == Precision::bf16) return forward ? "panels of the transpose, bf16" : "panels, bf16";
  return forward ? "panels of the transpose, bf16x3" : "panels, bf16x3";
}
template <Precision P, bool Forward>
static const Preparation* panelsOf() {
  static const Preparation preparation{
      .name = nameOf(P, Forward),
      .bytes = [](const Tensor& weight) { return shapeOf<P, Forward>(weight).sizeBytes(); },
      .run =
          [](const Tensor& weight, std::byte* to, Device&) {
            const int64_t in = weight[1];
            const Right from{weight.data, weight.dtype, Forward ? 1 : in, Forward ? in : 1};
            packPanels(from, shapeOf<P, Forward>(weight), to);
          },
      .blockRows = Forward ? PanelWidth : 0,
      .holds = [](const Tensor& weight) { return P == Precision::f32 || (P == Precision::bf16 && weight.dtype == Dtype::bf16); },
      .restore =
          [](const std::byte* prepared, const Tensor& to) {
            Panels panels = shapeOf<P, Forward>(to);
            panels.words = reinterpret_cast<const uint32_t*>(prepared);
            unpackRows(panels, to);
          }};
  return &preparation;
}
template <bool Forward>
static const Preparation* panelsOf(Precision precision) {
  if (precision == Precision::f32) return panelsOf<Precision::f32, Forward>();
  return precision == Precision::bf16x3 ? panelsOf<Precision::bf16x3, Forward>() : panelsOf<Precision::bf16, Forward>();
}
const Preparation* forwardPanels(Precision precision) { return panelsOf<true>(precision); }
const Preparation* backwardPanels(Precision precision) { return panelsOf<false>(precision); }

size_t slabBytes(Precision precision, int64_t rows, int64_t inner, int64_t columns) {
  const Panels slab{precision, inner < SlabRows ? inner : SlabRows, columns};
  return slab.sizeBytes() + static_cast<size_t>((rows + RowBlock - 1) / RowBlock * packedWords(slab.steps())) * sizeof(uint32_t);
}

// All of A, its blocks of rows one after another.
static void packLeft(const Left& a, Precision precision, int64_t rows, int64_t inner, uint32_t* to) {
  // Pieces of which each is one stretch of memory: rows, or a few k of many rows.
  const bool lines = a.innerStride == 1;
  const int64_t height = lines ? 32 : RowBlock, depth = lines ? inner : 128, each = perStep(precision);
  const int64_t pieces = (inner + depth - 1) / depth, blockWords = packedWords((inner + each - 1) / each);
  parallel((rows + height - 1) / height * pieces, [=](int64_t task) {
    const int64_t row = task / pieces * height, k = task % pieces * depth, step = k / each;
    uint32_t* block = to + row / RowBlock * blockWords + row % RowBlock * StepBlock;
    packRows(a, precision, {row, row + height < rows ? row + height : rows}, {k, k + depth < inner ? k + depth : inner}, 1,
             block + packedWords(step / StepBlock * StepBlock) + step % StepBlock);
  });
}

void multiplySlabs(Product product, const Right& b, int64_t rows, std::byte* room) {
  const Panels whole = product.b;
  const Left a = product.a;
  for (int64_t k = 0; k < whole.inner; k += SlabRows) {
    const int64_t depth = whole.inner - k < SlabRows ? whole.inner - k : SlabRows;
    const int64_t skipped = k * b.innerStride * static_cast<int64_t>(sizeBytes(b.dtype));
    product.a.data = a.data + k * a.innerStride;
    const Right slab{b.data + skipped, b.dtype, b.innerStride, b.columnStride};
    product.b = packPanels(slab, {whole.precision, depth, whole.columns}, room);
    uint32_t* packed = reinterpret_cast<uint32_t*>(room + product.b.sizeBytes());
    packLeft(product.a, whole.precision, rows, depth, packed);
    product.packed = packed;
    multiply(product, rows);
    product.continued = true;
  }
}

}  // namespace selscan::cpu
#endif
