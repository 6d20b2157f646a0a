// Products of a chunk's rows with a state, and what they need of q, k and g: for the forward and the backward kernel of gated linear
// attention. Included inside every target region, after cpu/simd_math.h; no guard of its own.
namespace selscan::ISA {

// Element (r, m) of a product's left side is data[r·row + m·depth].
struct Left {
  const float* data;
  int64_t row, depth;
};
struct Lines {
  float* data;
  int64_t row;
};

template <bool Whole>
inline F32 loadPart(const float* from, int n) {
  if constexpr (Whole) return load(from);
  else return load(from, n);
}
template <bool Whole>
inline void storePart(float* to, F32 x, int n) {
  if constexpr (Whole) store(to, x);
  else store(to, x, n);
}

// R rows × N vectors of a product in registers; depth by depth, so that an element's bits do not depend on R or N.
template <int R, int N, bool Whole, class Start>
inline void productBlock(int r, int64_t c, int n, int depth, const Left& x, const float* y, int64_t yRow, const Lines& to, Start& start) {
  F32 sum[R][N];
#pragma GCC unroll 4
  for (int i = 0; i < R; i++)
#pragma GCC unroll 4
    for (int v = 0; v < N; v++) sum[i][v] = start(r + i, c + v * Lanes, n);
  const float *left = x.data + r * x.row, *right = y + c;
  for (int m = 0; m < depth; m++, left += x.depth, right += yRow) {
    F32 line[N];
#pragma GCC unroll 4
    for (int v = 0; v < N; v++) line[v] = loadPart<Whole>(right + v * Lanes, n);
#pragma GCC unroll 4
    for (int i = 0; i < R; i++) {
      const F32 factor = set(left[i * x.row]);
#pragma GCC unroll 4
      for (int v = 0; v < N; v++) sum[i][v] = fma(factor, line[v], sum[i][v]);
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < R; i++)
#pragma GCC unroll 4
    for (int v = 0; v < N; v++) storePart<Whole>(to.data + (r + i) * to.row + c + v * Lanes, sum[i][v], n);
}

// to[r][c] = start(r, c, n) + Σ_m x(r, m)·y[m][c] for r < rows, c < columns; start gives the n ≤ Lanes elements from c on.
template <class Start>
inline void product(int rows, int64_t columns, int depth, const Left& x, const float* y, int64_t yRow, const Lines& to, Start start) {
  constexpr int Wide = Lanes == 16 ? 4 : 2;  // of 32 registers, or of 16
  const auto down = [&]<int N, bool Whole>(int64_t c, int n) {
    int r = 0;
    for (; r + 4 <= rows; r += 4) productBlock<4, N, Whole>(r, c, n, depth, x, y, yRow, to, start);
    for (; r < rows; r++) productBlock<1, N, Whole>(r, c, n, depth, x, y, yRow, to, start);
  };
  int64_t c = 0;
  for (; c + Wide * Lanes <= columns; c += Wide * Lanes) down.template operator()<Wide, true>(c, Lanes);
  for (; c + Lanes <= columns; c += Lanes) down.template operator()<1, true>(c, Lanes);
  if (c < columns) down.template operator()<1, false>(c, static_cast<int>(columns - c));
}

// Rows of one head in one chunk: places [first, last) are rows of the run, those before are a slot's tail or, without one, nothing.
struct ChunkInput {
  const float *q, *k, *g;  // of the row at place `first`, `keys` apart; g null: `decay` for every key
  int64_t keys;
  const float *tailK, *tailG;  // of place 0, `columns` apart; tailK null: no tail
  int64_t columns;
  int first, last, key;
  float decay, scale;
};
// What becomes of them: lines of padded keys, zero where there is no key.
struct ChunkForms {
  float* queries;    // scale·q[i]·a[0]·…·a[i] for the rows of the run
  int64_t queryRow;
  float* weights;    // [row of the run][place j ≤ i]: scale·Σ_key q[i]·k[j]·a[j+1]·…·a[i]
  int64_t weightRow;
  float* keys;       // [place]: k[j]·a[j+1]·…·a[last−1]
  float* decay;      // a[0]·…·a[last−1]
  float* factors;    // [place]: a
  int64_t line;
};

// The vector of keys from c on, zero beyond the last.
inline F32 keysAt(const float* from, int64_t c, int key) {
  const int n = key - static_cast<int>(c);
  return n >= Lanes ? load(from + c) : load(from + (n > 0 ? c : 0), n > 0 ? n : 0);
}

// The rows of a chunk one after another: each decays all that came before it, in this order for whichever rows are in the run.
inline void prepareChunk(const ChunkInput& in, const ChunkForms& to) {
  alignas(64) float query[cpu::KeyMax];
  const int64_t line = to.line;
  for (int64_t c = 0; c < line; c += Lanes) store(to.decay + c, set(1.0f));
  for (int i = 0; i < in.last; i++) {
    const bool own = i >= in.first;
    const float* k = own ? in.k + (i - in.first) * in.keys : in.tailK ? in.tailK + i * in.columns : nullptr;
    const float* g = own ? (in.g ? in.g + (i - in.first) * in.keys : nullptr) : in.tailG ? in.tailG + i * in.columns : nullptr;
    const F32 fixed = set(k ? in.decay : 1.0f);
    float *factor = to.factors + i * line, *key = to.keys + i * line;
    float* weights = own ? to.weights + (i - in.first) * to.weightRow : nullptr;
    for (int64_t c = 0; c < line; c += Lanes) {
      const F32 a = g ? exp(keysAt(g, c, in.key)) : fixed, decay = load(to.decay + c) * a;
      store(factor + c, a);
      store(to.decay + c, decay);
      store(key + c, k ? keysAt(k, c, in.key) : set(0.0f));
      if (!own) continue;
      const F32 q = keysAt(in.q + (i - in.first) * in.keys, c, in.key) * set(in.scale);
      store(query + c, q);
      store(to.queries + (i - in.first) * to.queryRow + c, q * decay);
    }
    for (int j = 0; j <= i; j++) {
      float* before = to.keys + j * line;
      F32 sum = set(0.0f);
      for (int64_t c = 0; c < line; c += Lanes) {
        F32 decayed = load(before + c);
        if (j < i) store(before + c, decayed = decayed * load(factor + c));
        if (own) sum = fma(load(query + c), decayed, sum);
      }
      if (own) weights[j] = ISA::sum(sum);
    }
  }
}

}  // namespace selscan::ISA
