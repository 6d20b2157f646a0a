// Small states that lie as [channel][width] in memory and as [width][lane] in a kernel: both ways. Included inside every
// target region, after cpu/simd.h; no guard of its own.
namespace selscan::ISA {

// to[width][lane] = from[lane][width]·factor, zero in lanes that have no channel.
inline void gatherLanes(const float* from, int width, int lanes, float factor, float* to) {
  int first = 0;
  for (; lanes == Lanes && first + Lanes <= width; first += Lanes) {
    F32 square[Lanes];
#pragma GCC unroll 16
    for (int i = 0; i < Lanes; i++) square[i] = load(from + int64_t{i} * width + first) * set(factor);
    transpose(square);
#pragma GCC unroll 16
    for (int n = 0; n < Lanes; n++) store(to + (first + n) * Lanes, square[n]);
  }
  for (int n = first; n < width; n++)
    for (int i = 0; i < Lanes; i++) to[n * Lanes + i] = i < lanes ? from[int64_t{i} * width + n] * factor : 0.0f;
}

// to[lane][width] = from[width][lane]
inline void scatterLanes(const float* from, int width, int lanes, float* to) {
  int first = 0;
  for (; lanes == Lanes && first + Lanes <= width; first += Lanes) {
    F32 square[Lanes];
#pragma GCC unroll 16
    for (int n = 0; n < Lanes; n++) square[n] = load(from + (first + n) * Lanes);
    transpose(square);
#pragma GCC unroll 16
    for (int i = 0; i < Lanes; i++) store(to + int64_t{i} * width + first, square[i]);
  }
  for (int i = 0; i < lanes; i++)
    for (int n = first; n < width; n++) to[int64_t{i} * width + n] = from[n * Lanes + i];
}

}  // namespace selscan::ISA
