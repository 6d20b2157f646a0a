// The kernels between which blockProduct() chooses.
#pragma once
#include "cpu/gemm.h"
#include "cpu/isa.h"

namespace selscan::cpu {
void productTilesEmulated(const Product&, const Block&);
}
#if SELSCAN_X86
namespace selscan::amx {
void productTiles(const cpu::Product&, const cpu::Block&);
}
namespace selscan::avx512bf16 {
void productDots(const cpu::Product&, const cpu::Block&);
}
namespace selscan::avxvnni {
void productInt8(const cpu::Product&, const cpu::Block&);
void roundInt8(const cpu::Product&, cpu::Range rows, std::byte* to);
}
namespace selscan::avx512vnni {
void productInt8(const cpu::Product&, const cpu::Block&);
void roundInt8(const cpu::Product&, cpu::Range rows, std::byte* to);
}
#endif
