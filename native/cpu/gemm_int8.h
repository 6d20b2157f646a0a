// Products of weights in 8 bits: w ≈ q·s, q a whole number in [−127, 127], s a bf16 for every 32 k of a row.
//
//   C[m, n] = Σ_g (a_g·s_g)·Σ_{k in g} p[m, k]·q[n, k]      x[m, k] ≈ p·a_g, a_g = max_{k in g}|x[m, k]|/127
//
// The row of A is rounded to 8 bits group by group, so that the inner sums are of whole numbers and exact on every instruction
// set; the outer one is an f32 sum over groups in rising order, the same for every number of rows. A group with a NaN or an infinity
// gives NaN; one with nothing above 2^−100 counts as zeros, so that 127/max is finite.
//
// A panel is [groups][8][16] words of four k of a column, the first k in the lowest byte, each stored as q + 128: that is what
// vpdpbusd multiplies, unsigned by signed. Σ p·(q + 128) begins at −128·Σp, which makes it Σ p·q. Scales are [groups][16] bf16
// beside the panel. Columns past the last have q and s 0; k past the last meet p = 0.
#pragma once
#include "cpu/gemm.h"

namespace selscan::cpu {

constexpr int64_t GroupSize = 32;

// The product of this processor.
BlockProduct int8Product();

// The forms of a weight (out, in) of i8, and of its scales (out, groups) of bf16. Both hold all of what they are made of.
const Preparation* int8Panels();
const Preparation* int8Scales();

// The form of an input of a kernel whose weight may be of 8 bits: its panels, those of its scales, or null.
const Preparation* weightForm(const Call& call, int input, int weight, int scales, Precision otherwise);

// The panels of such a weight of (out, in), and what is prepared of it.
Panels weightPanels(const Call& call, int weight, int scales, Precision otherwise);

// The kernels take rows of A that are rounded already, once for all tasks: into so many bytes, 0 for a weight of another dtype.
size_t roundedBytes(const Tensor& weight, int64_t rows);
// Rounds all rows into `to`, over the threads where there are more than a few, and says so to the product. Nothing for other weights.
void roundAhead(Product&, int64_t rows, std::byte* to);

// Groups between two loads of C: 1024 k, for which two panels (34 KB) and six rows of A (8 KB) stay in L1.
constexpr int64_t GroupBlock = 32;
constexpr int64_t GroupBytes = 72;  // of a rounded group, at most

}  // namespace selscan::cpu
