// The kernels between which blockProduct() chooses.
#pragma once
#include "cpu/gemm.h"
#include "cpu/isa.h"

namespace selscan::cpu {
void productTilesEmulated(const Product&, const Block&);
#if SELSCAN_X86
void productDots(const Product&, const Block&);   // AVX512-BF16
void productTiles(const Product&, const Block&);  // AMX
#endif
}  // namespace selscan::cpu
