// Embedding: rows of a table by id, and the table's gradient. See lib/ops/embedding.ts.
//
// Forward copies rows, bound by memory. The gradient sorts the rows by id (a counting sort, stable, O(rows + vocab) on one
// thread: 16384 rows take some 30 µs) and then sums the rows of each id; tasks are 32 ids × 256 columns, so that
// one frequent byte does not hold up a thread with the whole width. Sums run in row order, in partial sums of 64 rows that
// are added in order: the same bits for any number of threads, and no f32 sum is longer than rows/64 + 64 terms.
// This serves small vocabularies too; a one-hot product would do vocab times the additions.
#include <cstring>

#include "cpu/gemm_int8.h"
#include "cpu/threads.h"
#include "ops/embedding.h"

#define EACH_ISA "cpu/embedding.cpp"
#include "cpu/each_isa.h"

#ifdef ISA
namespace selscan::ISA {
namespace {

constexpr int64_t IdBlock = 32, ColumnBlock = 256, RowBlock = 64, PartialRows = 64;

// A row of the table from its panels (cpu/gemm.h), which the head of a tied model reads: the table need not be kept twice.
void copyPanelRow(const cpu::Panels& panels, int32_t id, float* to) {
  const uint32_t* words = panels.words + id / cpu::PanelWidth * panels.panelWords() + id % cpu::PanelWidth;
  const int64_t dim = panels.inner;
  if (panels.precision == cpu::Precision::f32) {
    for (int64_t i = 0; i < dim; i++) std::memcpy(to + i, words + i * cpu::PanelWidth, sizeof(float));
  } else {
    for (int64_t i = 0; i + 1 < dim; i += 2, words += cpu::PanelWidth) {  // word by word: element by element takes 1.8 times as long
      to[i] = fromBf16(static_cast<uint16_t>(*words));
      to[i + 1] = fromBf16(static_cast<uint16_t>(*words >> 16));
    }
    if (dim % 2 != 0) to[dim - 1] = fromBf16(static_cast<uint16_t>(*words));
  }
}

// A row q·s of a table in 8 bits: each of the two from its panels, or as it lies.
void copyInt8Row(const Tensor& weight, const Tensor& scales, const cpu::Panels& panels, int32_t id, float* to) {
  const int64_t dim = panels.inner, groups = panels.groups(), panel = id / cpu::PanelWidth, lane = id % cpu::PanelWidth;
  for (int64_t i = 0; i < dim; i++) {
    const int64_t group = i / cpu::GroupSize, word = panel * panels.panelWords() + i / 4 * cpu::PanelWidth + lane;
    const int q = panels.words ? static_cast<int>(panels.words[word] >> i % 4 * 8 & 255) - 128
                               : static_cast<int>(static_cast<int8_t>(weight.data[id * dim + i]));
    const uint16_t scale = panels.scales ? panels.scales[(panel * groups + group) * cpu::PanelWidth + lane] : scales.half()[id * groups + group];
    to[i] = static_cast<float>(q) * fromBf16(scale);
  }
}

// y's row: zero for id −1. An id that was computed on the way and lies outside the table gives NaN, which nobody overlooks.
void copyRow(const Tensor& weight, const Tensor& scales, const cpu::Panels& panels, int32_t id, float* to) {
  const int64_t dim = weight[1];
  if (id < 0 || id >= weight[0]) {
    const float fill = id == -1 ? 0.0f : NAN;
    for (int64_t i = 0; i < dim; i++) to[i] = fill;
  } else if (weight.dtype == Dtype::i8) {
    copyInt8Row(weight, scales, panels, id, to);
  } else if (panels.words) {
    copyPanelRow(panels, id, to);
  } else if (weight.dtype == Dtype::f32) {
    std::memcpy(to, weight.f32() + id * dim, sizeof(float) * dim);
  } else {
    const uint16_t* from = weight.half() + id * dim;
    int64_t i = 0;
    for (; i + Lanes <= dim; i += Lanes) store(to + i, loadBf16(from + i));
    for (; i < dim; i++) to[i] = fromBf16(from[i]);
  }
}

// Rows by id: those of id are order[starts[id]] … order[starts[id + 1] − 1], rising.
struct Sorted {
  int64_t *starts, *order;
};
Sorted sortRows(const int32_t* ids, int64_t rows, int64_t vocab, std::byte* workspace) {
  int64_t* starts = reinterpret_cast<int64_t*>(workspace);
  int64_t* order = starts + vocab + 2;
  std::memset(starts, 0, sizeof(int64_t) * (vocab + 2));
  const auto inside = [=](int64_t row) { return ids[row] >= 0 && ids[row] < vocab; };
  for (int64_t row = 0; row < rows; row++)
    if (inside(row)) starts[ids[row] + 2]++;
  for (int64_t id = 0; id < vocab; id++) starts[id + 2] += starts[id + 1];
  for (int64_t row = 0; row < rows; row++)  // leaves starts[id + 1] at the end of id, the start of the next
    if (inside(row)) order[starts[ids[row] + 1]++] = row;
  return {starts, order};
}

// to[0, n) = Σ dy[row][0, n) over count rows.
void sumRows(const float* dy, int64_t dim, const int64_t* rows, int64_t count, float* to, int64_t n) {
  for (int64_t i = 0; i < n; i += Lanes) {
    const int lanes = n - i < Lanes ? static_cast<int>(n - i) : Lanes;
    F32 total = set(0.0f);
    for (int64_t r = 0; r < count; r += PartialRows) {
      const int64_t end = r + PartialRows < count ? r + PartialRows : count;
      F32 partial = set(0.0f);
      for (int64_t k = r; k < end; k++) partial = partial + load(dy + rows[k] * dim + i, lanes);
      total = total + partial;
    }
    store(to + i, total, lanes);
  }
}

}  // namespace

void embedding(const Call& call) {
  const auto inputs = call.in<3>();
  const auto [y] = call.out<1>();
  if (!y) return;
  const Tensor& weight = inputs[1];
  const int32_t* ids = inputs[0].i32();
  float* to = y.f32();
  const int64_t rows = inputs[0][0], dim = weight[1];
  const cpu::Panels panels = cpu::weightPanels(call, 1, 2, cpu::storedPrecision(weight));
  cpu::parallel((rows + RowBlock - 1) / RowBlock, [&](int64_t block) {
    const int64_t end = (block + 1) * RowBlock < rows ? (block + 1) * RowBlock : rows;
    for (int64_t row = block * RowBlock; row < end; row++) copyRow(weight, inputs[2], panels, ids[row], to + row * dim);
  });
}

void embeddingGrad(const Call& call) {
  const auto [dy, ids] = call.in<2>();
  const auto [dweight] = call.out<1>();
  if (!dweight) return;
  const int64_t vocab = dweight[0], dim = dweight[1];
  const float* from = dy.f32();
  float* to = dweight.f32();
  const Sorted sorted = sortRows(ids.i32(), ids[0], vocab, call.workspace);
  const int64_t across = (dim + ColumnBlock - 1) / ColumnBlock, down = (vocab + IdBlock - 1) / IdBlock;
  cpu::parallel(across * down, [&](int64_t task) {
    const int64_t column = task % across * ColumnBlock, first = task / across * IdBlock;
    const int64_t n = dim - column < ColumnBlock ? dim - column : ColumnBlock;
    const int64_t last = first + IdBlock < vocab ? first + IdBlock : vocab;
    for (int64_t id = first; id < last; id++) {
      const int64_t begin = sorted.starts[id], count = sorted.starts[id + 1] - begin;
      sumRows(from + column, dim, sorted.order + begin, count, to + id * dim + column, n);
    }
  });
}

}  // namespace selscan::ISA
#else
namespace selscan::cpu {

static const Preparation* preparePanels(const Call& call, int input) {
  return weightForm(call, input, 1, 2, storedPrecision(call.inputs[1]));
}

static size_t sortBytes(const Call& call) {
  return sizeof(int64_t) * static_cast<size_t>(call.outputs[0][0] + 2 + call.inputs[1][0]);
}

KERNEL(embedding, cpu, "ids weight scales? -> y", .run = DISPATCH(embedding), .limit = ops::embeddingLimit, .prepare = preparePanels,
       .readsEither = true, .checkInputs = ops::checkEmbedding)
KERNEL(embeddingGrad, cpu, "dy ids -> dweight; vocab", .run = DISPATCH(embeddingGrad), .limit = ops::embeddingGradLimit,
       .workspaceBytes = sortBytes, .checkInputs = ops::checkEmbeddingGrad)

}  // namespace selscan::cpu
#endif
