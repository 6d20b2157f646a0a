// Small products and the way of keys and values into place, for the forward and the backward pass of attention: included inside
// every target region, after cpu/simd_math.h; no guard of its own.

namespace selscan::ISA {

// Accumulators in registers: 24 of 32, 12 of 16; 8 where vectors are plain C++.
inline constexpr int TileRows = Lanes == 4 ? 2 : 6;
inline constexpr int TileVectors = Lanes == 8 ? 2 : 4;

// How a product reads B: floats from the cache, or rows of a ring from memory. All but Near ask for what comes after while they
// compute, Lines lines a step: from `next` on, nextStep bytes further with every step and by `advance` with every TileVectors vectors.
struct Near {
  using Element = float;
  static constexpr int Lines = 0, Depth = 1;  // Depth: values of k in one row of B
  static F32 at(const float* p) { return load(p); }
};
template <class T>
constexpr int64_t StepBytes = TileVectors * Lanes * static_cast<int64_t>(sizeof(T));
template <class T>
constexpr int StepLines = StepBytes<T> > 64 ? StepBytes<T> / 64 : 1;
template <class T>
struct Far {
  using Element = T;
  static constexpr int Lines = StepLines<T>, Depth = 1;
  static int64_t advance(int64_t, int64_t) { return StepBytes<T>; }
  static F32 at(const T* p) {
    if constexpr (sizeof(T) == 2) return loadBf16(p);
    else return load(p);
  }
};
// Columns in the cache, beside as many rows that are not; each of floats, or of two bf16 in place of one float.
struct Beside : Near {
  static constexpr int Lines = StepLines<float>;
  static int64_t advance(int64_t steps, int64_t nextStep) { return steps * nextStep; }
};
struct BesideHalves : Beside {
  static constexpr int Depth = 2;
};

// C[r][v] (+)= Σ_k A[r][k]·B[k][v]: every element is one chain of multiply-adds in rising k, whatever stands beside it. `steps` counts
// rows of B.
template <class From = Near>
struct Product {
  const float* a;
  int64_t aRow, aStep;
  const typename From::Element* b;
  int64_t bStep;
  float* c;
  int64_t cRow, steps;
  bool continued;
  const std::byte* next = nullptr;
  int64_t nextStep = 0;
};

template <class From, int Rows, int Count>
void productTile(const Product<From>& t) {
  F32 sums[Rows][Count];
  SELSCAN_UNROLL
  for (int r = 0; r < Rows; r++) {
    SELSCAN_UNROLL
    for (int v = 0; v < Count; v++) sums[r][v] = t.continued ? load(t.c + r * t.cRow + v * Lanes) : set(0.0f);
  }
  const float* a = t.a;
  const typename From::Element* b = t.b;
  [[maybe_unused]] const std::byte* next = t.next;
  for (int64_t step = 0; step < t.steps; step++, a += From::Depth * t.aStep, b += t.bStep) {
    if constexpr (From::Lines > 0) {
      SELSCAN_UNROLL
      for (int i = 0; i < From::Lines; i++) __builtin_prefetch(next + 64 * i, 0, 2);
      next += t.nextStep;
    }
    F32 right[Count];
    SELSCAN_UNROLL
    for (int v = 0; v < Count; v++) right[v] = From::at(b + v * Lanes);
    SELSCAN_UNROLL
    for (int k = 0; k < From::Depth; k++) {
      SELSCAN_UNROLL
      for (int r = 0; r < Rows; r++) {
        const F32 left = set(a[r * t.aRow + k * t.aStep]);
        SELSCAN_UNROLL
        for (int v = 0; v < Count; v++) {
          const F32 factor = From::Depth == 1 ? right[v] : k == 0 ? lowHalf(right[v]) : highHalf(right[v]);
          sums[r][v] = fma(left, factor, sums[r][v]);
        }
      }
    }
  }
  SELSCAN_UNROLL
  for (int r = 0; r < Rows; r++) {
    SELSCAN_UNROLL
    for (int v = 0; v < Count; v++) store(t.c + r * t.cRow + v * Lanes, sums[r][v]);
  }
}

template <class From>
using TileFunction = void (*)(const Product<From>&);

template <class From, int Rows, int Count = TileVectors>
inline TileFunction<From> findCount(int count) {
  if (count == Count) return productTile<From, Rows, Count>;
  if constexpr (Count > 1) return findCount<From, Rows, Count - 1>(count);
  return nullptr;
}
template <class From, int Rows = TileRows>
inline TileFunction<From> findTile(int rows, int count) {
  if (rows == Rows) return findCount<From, Rows>(count);
  if constexpr (Rows > 1) return findTile<From, Rows - 1>(rows, count);
  return nullptr;
}

// At most TileRows rows, any number of vectors.
template <class From>
inline void multiply(Product<From> product, int rows, int64_t vectors) {
  for (int64_t v = 0; v < vectors; v += TileVectors, product.b += TileVectors * Lanes, product.c += TileVectors * Lanes) {
    findTile<From>(rows, vectors - v < TileVectors ? static_cast<int>(vectors - v) : TileVectors)(product);
    if constexpr (From::Lines > 0) product.next += From::advance(product.steps, product.nextStep);
  }
}

struct Span {
  int begin, end;
};

// C[r] += Σ_k A[r][k]·B[k] over k in spans[r] alone: what a row does not see is not even multiplied by zero, for 0·∞ is NaN. Both
// ends of the spans rise from row to row; what all rows share is done at once.
template <class From>
inline void multiplySpans(const Product<From>& product, const Span* spans, int rows, int64_t vectors) {
  const auto part = [&](int row, int count, int begin, int end) {
    if (begin >= end) return;
    Product<From> p = product;
    p.a += row * p.aRow + begin * p.aStep;
    p.b += begin * p.bStep;
    p.next += begin * p.nextStep;
    p.c += row * p.cRow;
    p.steps = end - begin;
    p.continued = true;
    multiply(p, count, vectors);
  };
  const Span shared{spans[rows - 1].begin, spans[0].end};
  if (shared.begin >= shared.end) {
    for (int r = 0; r < rows; r++) part(r, 1, spans[r].begin, spans[r].end);
    return;
  }
  for (int r = 0; r < rows; r++) part(r, 1, spans[r].begin, shared.begin);
  part(0, rows, shared.begin, shared.end);
  for (int r = 0; r < rows; r++) part(r, 1, shared.end, spans[r].end);
}

inline F32 loadHalves(const uint16_t* from, int n) {
  if (n >= Lanes) return loadBf16(from);
  uint16_t halves[Lanes] = {};
  std::memcpy(halves, from, sizeof(uint16_t) * static_cast<size_t>(n));
  return loadBf16(halves);
}

// One key or value. Own rows are rounded as the ring would store them.
struct Vector {
  const float* floats;
  const uint16_t* halves;  // null: floats
  bool round;
  F32 at(int64_t d, int n) const {
    if (halves) return loadHalves(halves + d, n);
    const F32 x = load(floats + d, n);
    return round ? roundedToBf16(x) : x;
  }
};
inline Vector vectorAt(const cpu::Vectors& from, int64_t position) {
  if (position >= from.position) return {from.own + (position - from.position) * from.stride, nullptr, from.halves};
  const int64_t offset = position % from.capacity * from.headDim;
  if (from.halves) return {nullptr, reinterpret_cast<const uint16_t*>(from.ring) + offset, false};
  return {reinterpret_cast<const float*>(from.ring) + offset, nullptr, false};
}

// Own rows are a page apart, where no prefetcher follows: lines of the one `Ahead` rows from `position` on are asked for.
constexpr int Ahead = 16;
inline void ask(const cpu::Vectors& from, int64_t position) {
  if (position < from.position) return;
  const float* row = from.own + (position + Ahead - from.position) * from.stride;
  for (int64_t d = 0; d < from.headDim; d += 16) cpu::prefetch(row + d);
}

// One vector of keys in a ring, Lanes rows of headDim, as columns. Rows that follow soon are asked for.
inline void turn(const float* rows, int64_t headDim, int64_t line, float* to) {
  for (int64_t d = 0; d < headDim; d += Lanes) {
    F32 x[Lanes];
    SELSCAN_UNROLL
    for (int i = 0; i < Lanes; i++) {
      __builtin_prefetch(rows + (i + Ahead) * headDim + d);
      x[i] = load(rows + i * headDim + d);
    }
    transpose(x);
    SELSCAN_UNROLL
    for (int i = 0; i < Lanes; i++) store(to + (d + i) * line, x[i]);
  }
}
// Two bf16 of one key are turned as one word of 32 bits, which is left whole or taken apart.
template <bool Halves>
inline void turn(const uint16_t* rows, int64_t headDim, int64_t line, float* to) {
  for (int64_t d = 0; d < headDim; d += 2 * Lanes) {
    F32 x[Lanes];
    SELSCAN_UNROLL
    for (int i = 0; i < Lanes; i++) {
      __builtin_prefetch(rows + (i + Ahead) * headDim + d);
      std::memcpy(&x[i], rows + i * headDim + d, sizeof(F32));
    }
    transpose(x);
    SELSCAN_UNROLL
    for (int i = 0; i < Lanes; i++) {
      if constexpr (Halves) {
        store(to + (d / 2 + i) * line, x[i]);
      } else {
        store(to + (d + 2 * i) * line, lowHalf(x[i]));
        store(to + (d + 2 * i + 1) * line, highHalf(x[i]));
      }
    }
  }
}

// to[dim][key] for keys [span.begin, span.end) after position `start`, a multiple of Lanes where a ring is read; vectors of keys
// begin at multiples of Lanes, and lanes beside the span repeat its ends. A line of `to` holds `line` keys. With Halves, which is for
// bf16 and even headDim, two dims share a line, each a half of a float's bits.
template <bool Halves = false>
inline void placeColumns(const cpu::Vectors& from, int64_t start, Span span, int64_t line, float* to) {
  for (int first = span.begin / Lanes * Lanes; first < span.end; first += Lanes) {
    Vector rows[Lanes];
    for (int i = 0; i < Lanes; i++) {
      const int key = first + i < span.begin ? span.begin : first + i < span.end ? first + i : span.end - 1;
      rows[i] = vectorAt(from, start + key);
      ask(from, start + key);
    }
    const bool whole = first >= span.begin && first + Lanes <= span.end && start + first + Lanes <= from.position;
    if (whole && !from.halves && from.headDim % Lanes == 0) {
      turn(rows[0].floats, from.headDim, line, to + first);
      continue;
    }
    if (whole && from.halves && from.headDim % (2 * Lanes) == 0) {
      turn<Halves>(rows[0].halves, from.headDim, line, to + first);
      continue;
    }
    for (int64_t d = 0; d < from.headDim; d += Lanes) {
      const int n = from.headDim - d < Lanes ? static_cast<int>(from.headDim - d) : Lanes;
      F32 x[Lanes];
      SELSCAN_UNROLL
      for (int i = 0; i < Lanes; i++) x[i] = rows[i].at(d, n);
      transpose(x);
      if constexpr (Halves)
        for (int i = 0; i < n; i += 2) store(to + (d + i) / 2 * line + first, together(x[i], x[i + 1]));
      else
        for (int i = 0; i < n; i++) store(to + (d + i) * line + first, x[i]);
    }
  }
}

// to[key][dim], lines padded with zeros to `line`.
inline void placeRows(const cpu::Vectors& from, int64_t start, Span span, int64_t line, float* to) {
  for (int key = span.begin; key < span.end; key++) {
    const Vector row = vectorAt(from, start + key);
    ask(from, start + key);
    for (int64_t d = 0; d < line; d += Lanes) {
      const int n = from.headDim - d < Lanes ? static_cast<int>(from.headDim - d) : Lanes;
      store(to + key * line + d, n > 0 ? row.at(d, n) : set(0.0f));
    }
  }
}

}  // namespace selscan::ISA
