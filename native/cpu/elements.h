// Loops over elements and over rows of them, for every instruction set: included inside every target region, after cpu/simd_math.h; no
// guard of its own.
namespace selscan::ISA {

// body(i, n) over [begin, end), n ≤ Lanes.
template <class Body>
inline void overVectors(int64_t begin, int64_t end, Body body) {
  int64_t i = begin;
  for (; i + Lanes <= end; i += Lanes) body(i, Lanes);
  if (i < end) body(i, static_cast<int>(end - i));
}

// The same over [0, count), in blocks over the threads.
template <class Body>
void overElements(int64_t count, Body body) {
  constexpr int64_t Block = 4096;  // 16 KB per operand: stays in L1, and a task costs far more than handing it out
  cpu::parallel((count + Block - 1) / Block, [&](int64_t block) {
    overVectors(block * Block, (block + 1) * Block < count ? (block + 1) * Block : count, body);
  });
}

// Σ term(i, n) over [0, count) in one fixed order; term gives elements [i, i + n), n ≤ Lanes, and zeros in the lanes after them. Four
// vectors of partial sums: without them the additions' latency, not memory, bounds a row.
template <class Term>
inline float sumOver(int64_t count, Term term) {
  F32 totals[4] = {set(0.0f), set(0.0f), set(0.0f), set(0.0f)};
  int64_t i = 0;
  for (; i + 4 * Lanes <= count; i += 4 * Lanes)
    for (int k = 0; k < 4; k++) totals[k] = totals[k] + term(i + k * Lanes, Lanes);
  for (; i + Lanes <= count; i += Lanes) totals[0] = totals[0] + term(i, Lanes);
  if (i < count) totals[1] = totals[1] + term(i, static_cast<int>(count - i));
  return sum((totals[0] + totals[1]) + (totals[2] + totals[3]));
}

// to[i] = Σ of lines[line·count + i], in f64; null: nobody reads it.
inline void addLines(const float* lines, int64_t many, int64_t count, float* to) {
  if (to == nullptr) return;
  constexpr int64_t Columns = 256;
  cpu::parallel((count + Columns - 1) / Columns, [=](int64_t task) {
    const int64_t end = (task + 1) * Columns < count ? (task + 1) * Columns : count;
    for (int64_t i = task * Columns; i < end; i++) {
      double total = 0;
      for (int64_t line = 0; line < many; line++) total += lines[line * count + i];
      to[i] = static_cast<float>(total);
    }
  });
}

}  // namespace selscan::ISA
