// bf16 products and the split of f32 (cpu/gemm.h) on AMX tiles: 32 × 32 of C in four tiles, fed by two tiles of A (16 rows × 16 pairs
// of k) and two of B (16 pairs × 16 columns, which is how panels lie in memory). Used for every number of rows, so that one row has the
// bits that it has among many. The three products of a split load eight tiles for twelve multiplications, where bf16 loads four for four:
// the order low·high, high·high, high·low changes one side at a time. The kernel is written over a tile type with four operations:
// HardwareTiles are the instructions, EmulatedTiles plain arrays with the same order of additions, for machines without AMX
// (SELSCAN_AMX=emulate).
#include <cstring>

#include "cpu/gemm_kernels.h"

namespace selscan::cpu {
namespace {

constexpr int TileSide = 16;  // rows of a tile, and 32-bit words in one of its rows
constexpr int64_t Side = 2 * TileSide;
constexpr size_t RowBytes = TileSide * sizeof(uint32_t);

// load, zero and store move a tile; multiply<C, A, B> adds A·B to C.
struct EmulatedTiles {
  struct File {
    uint32_t words[8][TileSide][TileSide];
  };
  static File& file() {
    static thread_local File file;
    return file;
  }
  static void begin() {}
  static void end() {}
  template <int Tile>
  static void zero() {
    std::memset(file().words[Tile], 0, sizeof file().words[Tile]);
  }
  template <int Tile>
  static void load(const void* from, int64_t strideWords) {
    for (int row = 0; row < TileSide; row++)
      std::memcpy(file().words[Tile][row], static_cast<const uint32_t*>(from) + row * strideWords, RowBytes);
  }
  template <int Tile>
  static void store(void* to, int64_t strideWords) {
    for (int row = 0; row < TileSide; row++)
      std::memcpy(static_cast<uint32_t*>(to) + row * strideWords, file().words[Tile][row], RowBytes);
  }
  template <int C, int A, int B>
  static void multiply() {
    for (int m = 0; m < TileSide; m++)
      for (int n = 0; n < TileSide; n++) {
        float even = 0, odd = 0;  // the two halves of the pairs are summed apart, as Intel's manual has it
        for (int k = 0; k < TileSide; k++) {
          const uint32_t a = file().words[A][m][k], b = file().words[B][k][n];
          even += fromBf16(static_cast<uint16_t>(a)) * fromBf16(static_cast<uint16_t>(b));
          odd += fromBf16(static_cast<uint16_t>(a >> 16)) * fromBf16(static_cast<uint16_t>(b >> 16));
        }
        float sum;
        std::memcpy(&sum, &file().words[C][m][n], sizeof sum);
        sum += even + odd;
        std::memcpy(&file().words[C][m][n], &sum, sizeof sum);
      }
  }
};

// Moves the part of C that exists between it and a whole 32 × 32 square.
struct Corner {
  float* c;
  int64_t cStride, rows, columns;
  void read(float (*square)[Side]) const {
    std::memset(square, 0, sizeof(float) * Side * Side);
    for (int64_t m = 0; m < rows; m++) std::memcpy(square[m], c + m * cStride, sizeof(float) * columns);
  }
  void write(const float (*square)[Side]) const {
    for (int64_t m = 0; m < rows; m++) std::memcpy(c + m * cStride, square[m], sizeof(float) * columns);
  }
};

struct SquareArguments {
  const uint32_t *a, *left, *right;  // 32 rows of A, two panels of B
  int64_t steps;
  float* c;
  int64_t cStride;
  bool continued;
};

}  // namespace
}  // namespace selscan::cpu

// Over the tile type, compiled again for the target of each.
#define ISA emulated
#include "cpu/gemm_tiles.h"
#undef ISA

namespace selscan::cpu {
void productTilesEmulated(const Product& product, const Block& block) {
  emulated::productOverTiles<EmulatedTiles>(product, block);
}
}  // namespace selscan::cpu

#if SELSCAN_X86
SELSCAN_PUSH_TARGET_AMX
namespace selscan::cpu {
namespace {

struct HardwareTiles {
  // The shape of the eight tiles: 16 rows of 64 bytes. A thread's tiles are configured for the time of a block and given
  // back after it: a thread that keeps them makes every switch to it dearer.
  static void begin() {
    struct alignas(64) Shape {
      uint8_t palette = 1, start = 0, reserved[14] = {};
      uint16_t rowBytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    };
    static constexpr Shape shape{};  // not on the stack: GCC's intrinsic says that it reads eight bytes of the 64
    _tile_loadconfig(&shape);
  }
  static void end() { _tile_release(); }
// A tile's number is part of the instruction; GCC's intrinsics paste it, so it has to be written out.
#define EACH_TILE(statement) \
  statement(0) statement(1) statement(2) statement(3) statement(4) statement(5) statement(6) statement(7)
  template <int Tile>
  static void zero() {
#define ZERO(n) \
  if constexpr (Tile == n) _tile_zero(n);
    EACH_TILE(ZERO)
#undef ZERO
  }
  template <int Tile>
  static void load(const void* from, int64_t strideWords) {
    __asm__ volatile("" ::: "memory");  // GCC's intrinsic does not say that it reads memory
#define LOAD(n) \
  if constexpr (Tile == n) _tile_loadd(n, from, strideWords * 4);
    EACH_TILE(LOAD)
#undef LOAD
  }
  template <int Tile>
  static void store(void* to, int64_t strideWords) {
#define STORE(n) \
  if constexpr (Tile == n) _tile_stored(n, to, strideWords * 4);
    EACH_TILE(STORE)
#undef STORE
  }
#undef EACH_TILE
  template <int C, int A, int B>
  static void multiply() {
    static_assert(A == 4 + C / 2 && B == 6 + C % 2);
    if constexpr (C == 0) _tile_dpbf16ps(0, 4, 6);
    if constexpr (C == 1) _tile_dpbf16ps(1, 4, 7);
    if constexpr (C == 2) _tile_dpbf16ps(2, 5, 6);
    if constexpr (C == 3) _tile_dpbf16ps(3, 5, 7);
  }
};

}  // namespace
}  // namespace selscan::cpu

#define ISA amx
#include "cpu/gemm_tiles.h"
#undef ISA

namespace selscan::amx {
void productTiles(const cpu::Product& product, const cpu::Block& block) { productOverTiles<cpu::HardwareTiles>(product, block); }
}  // namespace selscan::amx
SELSCAN_POP_TARGET
#endif
