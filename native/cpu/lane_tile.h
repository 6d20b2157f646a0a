// Small states that lie as [channel][width] in memory and as [width][lane] in a kernel: both ways. Included inside every
// target region, after cpu/simd.h; no guard of its own.
namespace selscan::ISA {

// v[i][k] becomes v[k][i].
#if defined(SELSCAN_AVX512)
inline void transpose(F32 (&v)[Lanes]) {
  __m512 quads[4][4];  // [rows 4g … 4g + 3][k]: in quarter q of the register, column 4q + k of those rows
#pragma GCC unroll 4
  for (int g = 0; g < 4; g++) {
    const __m512 a = _mm512_unpacklo_ps(v[4 * g].v, v[4 * g + 1].v), b = _mm512_unpackhi_ps(v[4 * g].v, v[4 * g + 1].v);
    const __m512 c = _mm512_unpacklo_ps(v[4 * g + 2].v, v[4 * g + 3].v), d = _mm512_unpackhi_ps(v[4 * g + 2].v, v[4 * g + 3].v);
    quads[g][0] = _mm512_shuffle_ps(a, c, 0x44);
    quads[g][1] = _mm512_shuffle_ps(a, c, 0xee);
    quads[g][2] = _mm512_shuffle_ps(b, d, 0x44);
    quads[g][3] = _mm512_shuffle_ps(b, d, 0xee);
  }
#pragma GCC unroll 4
  for (int k = 0; k < 4; k++) {
    const __m512 even = _mm512_shuffle_f32x4(quads[0][k], quads[1][k], 0x88), odd = _mm512_shuffle_f32x4(quads[0][k], quads[1][k], 0xdd);
    const __m512 evenHigh = _mm512_shuffle_f32x4(quads[2][k], quads[3][k], 0x88);
    const __m512 oddHigh = _mm512_shuffle_f32x4(quads[2][k], quads[3][k], 0xdd);
    v[k].v = _mm512_shuffle_f32x4(even, evenHigh, 0x88);
    v[4 + k].v = _mm512_shuffle_f32x4(odd, oddHigh, 0x88);
    v[8 + k].v = _mm512_shuffle_f32x4(even, evenHigh, 0xdd);
    v[12 + k].v = _mm512_shuffle_f32x4(odd, oddHigh, 0xdd);
  }
}
#elif defined(SELSCAN_AVX2)
inline void transpose(F32 (&v)[Lanes]) {
  __m256 quads[2][4];  // [rows 4g … 4g + 3][k]: in half q of the register, column 4q + k of those rows
#pragma GCC unroll 2
  for (int g = 0; g < 2; g++) {
    const __m256 a = _mm256_unpacklo_ps(v[4 * g].v, v[4 * g + 1].v), b = _mm256_unpackhi_ps(v[4 * g].v, v[4 * g + 1].v);
    const __m256 c = _mm256_unpacklo_ps(v[4 * g + 2].v, v[4 * g + 3].v), d = _mm256_unpackhi_ps(v[4 * g + 2].v, v[4 * g + 3].v);
    quads[g][0] = _mm256_shuffle_ps(a, c, 0x44);
    quads[g][1] = _mm256_shuffle_ps(a, c, 0xee);
    quads[g][2] = _mm256_shuffle_ps(b, d, 0x44);
    quads[g][3] = _mm256_shuffle_ps(b, d, 0xee);
  }
#pragma GCC unroll 4
  for (int k = 0; k < 4; k++) {
    v[k].v = _mm256_permute2f128_ps(quads[0][k], quads[1][k], 0x20);
    v[4 + k].v = _mm256_permute2f128_ps(quads[0][k], quads[1][k], 0x31);
  }
}
#else
inline void transpose(F32 (&v)[Lanes]) {
  for (int i = 0; i < Lanes; i++)
    for (int k = 0; k < i; k++) {
      const float above = v[k].v[i];
      v[k].v[i] = v[i].v[k];
      v[i].v[k] = above;
    }
}
#endif

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
