// Philox4x32-10 against the known answers that ship with Random123 (examples/kat_vectors).
#include "core/philox.h"

#include "check.h"

namespace selscan::test {

TEST("Philox4x32-10 gives the known answers of Random123") {
  using Words = std::array<uint32_t, 4>;
  CHECK(philox({0, 0, 0, 0}, {0, 0}) == (Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  CHECK(philox({~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}) == (Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  CHECK(philox({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}) ==
        (Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST("uniform numbers lie in [0, 1) and fill it evenly") {
  constexpr int Count = 100'000, Bins = 10;
  int bins[Bins] = {};
  double mean = 0;
  for (uint64_t position = 0; position < Count; position++) {
    const double u = uniformAt(42, position);
    CHECK(u >= 0 && u < 1, u);
    bins[static_cast<int>(u * Bins)]++;
    mean += u / Count;
  }
  CHECK(mean > 0.497 && mean < 0.503, mean);                                     // 3 σ = 0.0027
  for (const int bin : bins) CHECK(bin > 9'600 && bin < 10'400, bin);             // 4 σ = 380
  CHECK(uniformAt(42, 7) != uniformAt(43, 7) && uniformAt(42, 7) != uniformAt(42 + (1ull << 32), 7));
}

}  // namespace selscan::test
