// The step of the selective scan on one vector of channels, for the forward and the backward kernel: included inside every
// target region, after cpu/simd_math.h and cpu/lane_tile.h; no guard of its own.
//
// Inside a tile all arrays are [row][lane] or [state][lane]. A is pre-scaled by log2 e, so that the decay is one exp2.
namespace selscan::ISA {

// States that stay in registers at a time: 16 of 32 registers on AVX-512, 8 of 16 on AVX2.
inline constexpr int PassMax = Lanes == 16 ? 16 : 8;

// Calls body.operator()<N>(first) for passes of N ∈ {16, 8, 4, 2, 1} states that cover [0, state).
template <class Body>
inline void eachPass(int state, Body&& body) {
  for (int first = 0; first < state;) {
    const int left = state - first;
    const auto pass = [&]<int N>() {
      body.template operator()<N>(first);
      first += N;
    };
    if (PassMax >= 16 && left >= 16) pass.template operator()<PassMax>();
    else if (left >= 8) pass.template operator()<8>();
    else if (left >= 4) pass.template operator()<4>();
    else if (left >= 2) pass.template operator()<2>();
    else pass.template operator()<1>();
  }
}

// Lines of one vector of channels that are wanted soon, one of each stream per row. Rows are `inner` floats apart, so every row's
// line is a miss of its own, and often on a page of its own: asked for only when it is wanted, each costs as much as its arithmetic.
struct Ahead {
  const float *read[4], *write[3];  // of the first row; null: none
  int64_t inner;
  int rows = 0;

  void fetch(int t) const {
    if (t >= rows) return;
    for (const float* p : read)
      if (p) cpu::prefetch(p + t * inner);
    for (const float* p : write)
      if (p) cpu::prefetchToWrite(p + t * inner);
  }
  void fetchAll() const {
    for (int t = 0; t < rows; t++) fetch(t);
  }
};

// Some rows of one vector of channels.
struct Pass {
  int rows;
  const float *delta, *input;  // [row][lane]: Δ and Δ·x
  const float* decay;          // [state][lane]: A·log2 e
  const float *B, *C;          // of the first row; the next row is `bands` further
  int64_t bands;
  float* h;     // [state][lane]: the state before the first row, then after the last
  float* y;     // [row][lane]: += C·h
  float* kept;  // [row + 1][N states][lane]: the states before every row and after the last (Keep only)
  Ahead ahead;
};

// h = exp(Δ A) h + Δ x B, y += C·h, row by row for the states [first, first + N) in registers.
template <int N, bool Keep>
inline void advance(const Pass& pass, int first) {
  F32 h[N];
  const float* decay = pass.decay + first * Lanes;
#pragma GCC unroll 16
  for (int n = 0; n < N; n++) h[n] = load(pass.h + (first + n) * Lanes);
  const float *B = pass.B + first, *C = pass.C + first;
  for (int t = 0; t < pass.rows; t++, B += pass.bands, C += pass.bands) {
    if (!Keep && first == 0) pass.ahead.fetch(t);
    const F32 delta = load(pass.delta + t * Lanes), input = load(pass.input + t * Lanes);
    F32 y = load(pass.y + t * Lanes);
#pragma GCC unroll 16
    for (int n = 0; n < N; n++) {
      if (Keep) store(pass.kept + (t * N + n) * Lanes, h[n]);
      h[n] = fma(exp2(delta * load(decay + n * Lanes)), h[n], input * set(B[n]));
      y = fma(h[n], set(C[n]), y);
    }
    store(pass.y + t * Lanes, y);
  }
#pragma GCC unroll 16
  for (int n = 0; n < N; n++) {
    if (Keep) store(pass.kept + (pass.rows * N + n) * Lanes, h[n]);
    store(pass.h + (first + n) * Lanes, h[n]);
  }
}

}  // namespace selscan::ISA
