// Selective scan, backward. See lib/ops/selective-scan.ts for the equations.
//
// A block is 8 to 48 channels of one group × a part of the segments. It walks each segment's 64-row chunks from the last to
// the first. In a chunk it computes Δ of all rows, sweeps forward from the saved states and keeps those before every 8th row;
// then, tile by tile of 8 rows from the last, it computes the states once more, now keeping all of them and their decays in
// registers, and goes back through the rows:
//
//   dh[t] = C dp[t] + g      dB += dh Δx      dC += dp h[t]      Σ_B = Σ_n B dh      g' = exp(ΔA) dh
//   through = g' h[t−1]      dA += Δ·through      Σ_A = Σ_n A·through
//   dx = D dp + Δ Σ_B      dΔ = x Σ_B + Σ_A      ddelta = dΔ σ(delta + bias), where σ = 1 − e^−Δ
//
// `Lanes` lanes share a channel, each with 4 of its states. Sums over states and over the channels of a warp are transposing
// butterflies: a lane ends with the sums of its own rows, which it finishes (gate, D, slope), or with one of dB and dC. Those
// are added over warps in shared memory, written as partial sums of the block and added over blocks by a second kernel;
// dA, dD and dbias stay in registers over the rows of the part and are added over parts by a third. All in an order that
// shapes alone decide; no atomics.
//
// Workspace: 2·state floats per row and block, that is per element of x 2.7 B at state 16 in groups of 2048 channels or more, 4 B
// in smaller ones, 11 B at state 32, 64 B at state 64; and where there are several parts, a copy of dA for each.
//
// Bound by instruction issue and exponentials: about 460 instructions (state 16) per element, of which the butterflies are a
// third, and 2·state + 6 exponentials and their like (both counted, not measured). Bytes are behind that: 14 per element with
// bf16 (x, delta, z, dy; dx, ddelta, dz), 1 for the saved states, the partial sums twice. Copies of a tile run while the one
// behind it is computed; those at the start of a chunk are waited for, and the other blocks of the multiprocessor fill that
// time. Keeping decays saves a third sweep of exponentials and costs 32 registers. Not measured on a GPU yet.
#include "core/dims.h"
#include "cuda/launch.cuh"
#include "cuda/scan_grad_walk.cuh"

namespace selscan::cuda {
namespace {

// Twelve warps on a multiprocessor: with 128 registers and sixteen warps, 64 of them hold states and decays, and some spill.
// registers: 168
template <class T, int Lanes, int Threads>
__global__ __launch_bounds__(Threads, 384 / Threads) void scanGradient(const ScanGrad<T> scan) {
  using Walk = ScanGradWalk<T, Lanes, Threads>;
  SHARED(typename Walk::Shared, shared);
  Walk walk(scan, *shared, blockIdx.x);
  const int64_t count = scan.segmentCount;
  const int end = static_cast<int>((blockIdx.y + 1) * count / scan.parts);
#pragma unroll 1
  for (int s = static_cast<int>(blockIdx.y * count / scan.parts); s < end; s++) walk.gradSegment(s);
  walk.finish(blockIdx.y);
}

constexpr unsigned Threads = 256;

// dB and dC: the partial sums [block][row][dB, dC][state] of a group's blocks, added in order.
// registers: 40
template <class T>
__global__ __launch_bounds__(Threads) void addBlocks(const float* partial, int64_t rows, int groups, int state,
                                                     int64_t blocksPerGroup, T* dB, T* dC) {
  const int64_t bands = int64_t{groups} * state, i = int64_t{blockIdx.x} * Threads + threadIdx.x, row = i / (2 * bands);
  if (row >= rows) return;
  const int column = static_cast<int>(i - row * 2 * bands), group = column / (2 * state), within = column % (2 * state);
  T* to = within < state ? dB : dC;
  if (to == nullptr) return;
  const float* from = partial + (group * blocksPerGroup * rows + row) * 2 * state + within;
  float sum = 0;
#pragma unroll 8
  for (int64_t b = 0; b < blocksPerGroup; b++) sum += from[b * rows * 2 * state];
  to[row * bands + group * state + within % state] = fromFloat<T>(sum);
}

// total[i] = Σ partial[part][i], in order.
// registers: 32
__global__ __launch_bounds__(Threads) void addParts(const float* partial, int64_t size, int64_t parts, float* total) {
  const int64_t i = int64_t{blockIdx.x} * Threads + threadIdx.x;
  if (i >= size) return;
  float sum = 0;
#pragma unroll 8
  for (int64_t part = 0; part < parts; part++) sum += partial[part * size + i];
  total[i] = sum;
}

template <class T>
struct RowTensors {
  static constexpr int Count = 5;
  T* data[Count];
  int64_t width[Count];
};

// Zeroes the rows before segment blockIdx.x that lie in none, and after the last.
// registers: 32
template <class T>
__global__ __launch_bounds__(Threads) void zeroSpareRows(const int32_t* segments, int count, int64_t rows,
                                                         RowTensors<T> tensors) {
  const int s = blockIdx.x;
  const Segment segment = s < count ? readSegment(segments, s) : Segment{};
  if (s < count && !isUsed(segment)) return;
  const int64_t begin = endBefore(segments, s), end = s < count ? segment.begin : rows;
#pragma unroll
  for (int k = 0; k < RowTensors<T>::Count; k++) {
    if (tensors.data[k] == nullptr) continue;
    const int64_t last = end * tensors.width[k], step = int64_t{gridDim.y} * Threads;
    for (int64_t i = begin * tensors.width[k] + blockIdx.y * Threads + threadIdx.x; i < last; i += step)
      tensors.data[k][i] = fromFloat<T>(0.0f);
  }
}

// How the work is cut, from shapes alone, and where things lie in the workspace (in floats).
struct Cut {
  int64_t rows, inner, state, groups, blocksPerGroup, parts;
  int lanes, threads;
  bool bands, sums;  // whether dB or dC, whether dA, dD or dbias are to be computed

  explicit Cut(const Call& call) : rows(call.inputs[2][0]), inner(call.inputs[2][1]), state(call.inputs[4][1]) {
    const auto present = [&](int output) { return call.outputs[output].shape.rank > 0; };
    groups = call.inputs[5][1] / state;
    const int64_t perGroup = inner / groups;
    lanes = state <= 16 ? 4 : state <= 32 ? 8 : 16;
    // More channels in a block are fewer partial sums; fewer are more blocks where channels are few.
    threads = lanes == 8 || (lanes == 4 && perGroup >= 2048) ? 192 : 128;
    blocksPerGroup = ceilDiv(perGroup, threads / lanes);
    // Some waves of blocks on the largest chips; the copies of dA stay below 8 and a few MB.
    parts = std::min(call.inputs[10][0], std::max<int64_t>(8, 1024 / blocks()));
    bands = present(3) || present(4);
    sums = present(2) || present(5) || present(7);
  }
  int64_t blocks() const { return groups * blocksPerGroup; }
  int64_t partial(int64_t size) const { return parts > 1 && sums ? parts * size : 0; }  // one part: written where it belongs
  int64_t dA() const { return bands ? blocks() * rows * 2 * state : 0; }
  int64_t dD() const { return dA() + partial(inner * state); }
  int64_t dbias() const { return dD() + partial(inner); }
  size_t sizeBytes() const { return sizeof(float) * static_cast<size_t>(dbias() + partial(inner)); }
};

template <class T, int Lanes, int Threads>
void launchScan(const Call& call, const Cut& cut, const ScanGrad<T>& scan) {
  const Grid grid{dim3(static_cast<unsigned>(cut.blocks()), static_cast<unsigned>(cut.parts)), Threads,
                  sizeof(ScanGradShared<T, Lanes, Threads>)};
  static_assert(sizeof(ScanGradShared<T, Lanes, Threads>) <= 99 * 1024);  // what every device of capability 8.0 and later has
  launch(deviceOf(call), grid, scanGradient<T, Lanes, Threads>, scan);
}

template <class T>
void launchScan(const Call& call, const Cut& cut, const ScanGrad<T>& scan) {
  if (cut.lanes == 4 && cut.threads == 128) launchScan<T, 4, 128>(call, cut, scan);
  else if (cut.lanes == 4) launchScan<T, 4, 192>(call, cut, scan);
  else if (cut.lanes == 8) launchScan<T, 8, 192>(call, cut, scan);
  else launchScan<T, 16, 128>(call, cut, scan);
}

template <class T>
void runAs(const Call& call) {
  const auto [dy, dfinal, x, delta, A, B, C, D, z, bias, segments, saved] = call.in<12>();
  const auto [dx, ddelta, dA, dB, dC, dD, dz, dbias, dinitial] = call.out<9>();
  CudaDevice& device = deviceOf(call);
  const Cut cut(call);
  auto* workspace = reinterpret_cast<float*>(call.workspace);
  const bool split = cut.parts > 1;
  const auto sums = [&](const Tensor& output, int64_t offset) { return output && split ? workspace + offset : output.f32(); };
  float* bands = dB || dC ? workspace : nullptr;

  launchScan<T>(call, cut,
                {.dy = dataOf<T>(dy), .x = dataOf<T>(x), .delta = dataOf<T>(delta), .B = dataOf<T>(B), .C = dataOf<T>(C),
                 .z = dataOf<T>(z), .dfinal = dfinal.f32(), .A = A.f32(), .D = D.f32(), .bias = bias.f32(), .saved = saved.f32(),
                 .segments = segments.i32(), .dx = dataOf<T>(dx), .ddelta = dataOf<T>(ddelta), .dz = z ? dataOf<T>(dz) : nullptr,
                 .dinitial = dinitial.f32(), .dA = sums(dA, cut.dA()), .dD = sums(dD, cut.dD()),
                 .dbias = sums(dbias, cut.dbias()), .bands = bands, .rows = cut.rows, .inner = int(cut.inner),
                 .segmentCount = int(segments[0]), .parts = int(cut.parts), .blocksPerGroup = int(cut.blocksPerGroup),
                 .groups = int(cut.groups), .state = int(cut.state), .softplus = call.attributes.flag("softplus"),
                 .vectors = inVectors<T>(cut.inner / cut.groups)});
  if (bands)
    launch(device, {static_cast<unsigned>(ceilDiv(cut.rows * 2 * B[1], Threads)), Threads}, addBlocks<T>, bands, cut.rows,
           static_cast<int>(cut.groups), static_cast<int>(cut.state), cut.blocksPerGroup, dataOf<T>(dB), dataOf<T>(dC));
  const auto addUp = [&](const Tensor& output, int64_t offset) {
    if (output && split)
      launch(device, {static_cast<unsigned>(ceilDiv(output.elements(), Threads)), Threads}, addParts, workspace + offset,
             output.elements(), cut.parts, output.f32());
  };
  addUp(dA, cut.dA());
  addUp(dD, cut.dD());
  addUp(dbias, cut.dbias());
  if (dz && !z) device.check(cudaMemsetAsync(dz.data, 0, dz.sizeBytes(), device.stream()), "zeroing");
  launch(device, {dim3(static_cast<unsigned>(segments[0] + 1), 8), Threads}, zeroSpareRows<T>, segments.i32(),
         static_cast<int>(segments[0]), cut.rows,
         RowTensors<T>{{dataOf<T>(dx), dataOf<T>(ddelta), dataOf<T>(dz), dataOf<T>(dB), dataOf<T>(dC)},
                       {cut.inner, cut.inner, cut.inner, B[1], B[1]}});
}

void run(const Call& call) {
  withType(call.inputs[2].dtype, [&]<class T>() { runAs<T>(call); });
}

std::string limit(const Call& call) {
  std::string wrong = ops::scanGradLimit(call);
  constexpr int64_t Max = 1 << 30;  // of what kernels count in 32 bits
  const int64_t inner = call.inputs[2][1], bands = call.inputs[5][1], segments = call.inputs[10][0];
  if (wrong.empty() && std::max({inner, bands, segments}) > Max)
    wrong = "inner, bands and segments are at most 2^30, got " + std::to_string(inner) + ", " + std::to_string(bands) + " and " +
            std::to_string(segments);
  return wrong;
}

KERNEL(selectiveScanGrad, cuda,
       "dy? dfinal? x delta A B C D? z? bias? segments saved -> dx ddelta dA dB dC dD dz dbias dinitial; softplus", .run = run,
       .limit = limit, .workspaceBytes = [](const Call& call) { return Cut(call).sizeBytes(); },
       .checkInputs = ops::checkScanGrad,
       // A block reads its part of a chunk of x and delta, and of a tile of z, before it writes their gradients; no other does.
       .inPlace = {{0, 2}, {1, 3}, {6, 8}})

}  // namespace
}  // namespace selscan::cuda
