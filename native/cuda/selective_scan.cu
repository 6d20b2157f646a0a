// Selective scan, forward. See lib/ops/selective-scan.ts for the equations, cuda/scan_tile.cuh for how a channel lies in lanes.
//
// A block is 128/S channels of one group × one segment, and walks the segment in tiles of 32 rows. While a tile is computed the
// next one arrives (cp.async); B and C come once per block, Δ and Δ·x are computed once per row and channel. States and A·log2 e
// stay in registers; S rows at a time, one transposed butterfly over the lanes' parts of C·h leaves lane j with the sum of row j,
// to which it adds D·x and the gate. Rows go out in vectors of 16 bytes. A few rows per segment (decoding) take the direct
// kernel: no tile, no barrier, one vector of states per lane.
//
// S is 4, 8 or 16: the smallest that gives a chip of 132 multiprocessors two warps per scheduler. The chip at hand must not
// decide bits, and neither may a sequence's neighbours; but occupancy depends on them. Both hold because the sum over states is
// the same tree for every S, at the price of N − 1 additions per row and lane that a chain of fused multiply-adds would not
// need: about 7 % of the instructions at S = 4, none at 16. S below 4 would gain little: 4 is within 26 % of the exponentials.
// Lines of segments may be unused, so 512 rows count as a sequence, and not their number alone.
//
// Bounds per channel·row at state 16 in bf16, counted, not yet measured on a GPU: 20 special functions (16 per multiprocessor and
// clock: 8.2 ps on an A100, 5.4 ps on an H200); per 32 channel·rows 162, 186 and 243 PTX instructions in the loop at S = 4, 8
// and 16, and about 40 more for Δ, staging and stores (four per clock: 6.8, 7.6 and 9.5 ps on an H200); 8 bytes (3.9 and 1.7 ps).
// ex2.approx is exact at 0 and errs by 2⁻²² elsewhere, about what f32 can hold of a decay near 1.
//
// SELSCAN_SCAN_SPLIT=1 cuts segments into pieces of 512 rows where one sequence has too few channels to fill the chip (inner ·
// segments below 2112): each piece's end is computed from zero, the ends are carried through in order, then all pieces run at
// once, for 1.7 times the work. It pays for long prompts of small models; it changes bits, and a sequence cut into calls no
// longer equals one in a single call bit for bit. So it is off unless asked for.
#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "cuda/launch.cuh"
#include "cuda/scan_forward.cuh"

namespace selscan::cuda {
namespace {

using namespace forward;

// Ends: the first phase of a split scan, which computes what every piece but the last of a segment ends with, from zero.
// At state 16 the launch bound holds it to 64 registers; more states may take 96.
// registers: 96
template <bool Ends, class T, int S, int N>
__global__ __launch_bounds__(Threads, S* N == 16 ? 8 : 5) void scanPieces(const __grid_constant__ Scan<T> scan) {
  using Shared = Tile<T, S, N>;
  SHARED(Shared, tile);
  const int slot = static_cast<int>(blockIdx.x / scan.blocks);
  const Place place = placeOf<Shared::Channels>(scan, blockIdx.x % scan.blocks);
  const Piece piece = pieceAt(scan, slot);
  const int rows = Ends && piece.last ? 0 : piece.rows;
  const int c = static_cast<int>(threadIdx.x / S), n = static_cast<int>(threadIdx.x % S) * N;
  const bool mine = c < place.channels;
  const int64_t size = scan.inner * scan.state, channelAt = place.channel + (mine ? c : 0), offset = channelAt * scan.state;
  const int column = static_cast<int>(threadIdx.x % Shared::Channels);
  const float bias = scan.bias && column < place.channels ? scan.bias[place.channel + column] : 0.0f;
  const float D = scan.D && mine ? scan.D[channelAt] : 0.0f;
  const float* start = Ends ? nullptr : scan.ends ? scan.ends + piece.slot * size : stateBefore(scan, piece.segment, piece.s);
  Channel<S, N> channel;
  channel.load(mine ? scan.A + offset : nullptr, mine && start ? start + offset : nullptr, n, scan.state);
  const auto keep = [&](float* states, int64_t index) {
    if (mine) channel.store(states + index * size + offset, n, scan.state);
  };

  float total = 0.0f;
  if (rows > 0) stageTile<Ends, T, S, N>(scan, place, piece.begin, min(Rows, rows), tile->raw[0]);
  commitCopies();
#pragma unroll 1
  for (int first = 0, index = 0; first < rows; first += Rows, index ^= 1) {
    typename Shared::Raw& raw = tile->raw[index];
    const int here = min(Rows, rows - first), next = min(Rows, rows - first - Rows);
    const int64_t row = int64_t{piece.begin} + first;
    waitCopies<0>();
    __syncthreads();  // this tile is there, and nobody reads the other one any more
    if (next > 0) stageTile<Ends, T, S, N>(scan, place, row + Rows, next, tile->raw[index ^ 1]);
    commitCopies();
    prepareSteps<T, S, N>(scan, *tile, raw, here, bias);
    LaneBands<S, N>::template arrange<Threads>(tile->bands[0], raw.B[0], raw.C[0], here);
    __syncthreads();
    if constexpr (Ends) {
      total += advanceEnds<T, S, N>(*tile, here, channel);
    } else {
      const int64_t within = row - piece.segment.begin;
      if (scan.saved && within % ops::ScanChunk == 0)
        keep(scan.saved, savedChunk(piece.segment.begin, piece.s) + within / ops::ScanChunk);
      advanceRows<T, S, N>(scan, *tile, raw, here, channel, D);
      __syncthreads();
      T* y = scan.y + row * scan.inner + place.channel;
      if (scan.y) storeRows<Threads, Shared::Channels>(y, raw.x[0], scan.inner, here, place.channels, scan.rowVectors);
    }
  }

  if constexpr (Ends) {
    if (rows > 0) keep(scan.ends, piece.slot);
    if (rows > 0 && mine && n == 0) scan.totals[piece.slot * scan.inner + channelAt] = total;
  } else {
    if (scan.final && piece.last) keep(scan.final, piece.s);
    if (scan.carried && rows > 0 && piece.last && piece.segment.to > 0) keep(scan.carried, piece.segment.to);
    if (scan.y && !scan.ends) zeroSpareRows<Shared::Channels>(scan, piece.segment, piece.s, place.channel, place.channels);
  }
}

// The second phase: ends of pieces become what the next one starts from. A thread is one state of one channel and segment.
// registers: 32
template <class T>
__global__ __launch_bounds__(Threads) void carryEnds(const __grid_constant__ Scan<T> scan, unsigned blocks) {
  const int s = static_cast<int>(blockIdx.x / blocks);
  const int64_t size = scan.inner * scan.state, at = int64_t{blockIdx.x % blocks} * Threads + threadIdx.x;
  const Segment segment = readSegment(scan.segments, s);
  if (at >= size) return;
  if (!isUsed(segment)) {
    if (scan.final) scan.final[s * size + at] = 0.0f;
    return;
  }
  const float* start = stateBefore(scan, segment, s);
  const int64_t channel = at / scan.state, first = firstSlot(segment.begin, s), count = pieceCount(segment);
  const float decay = __fmul_rn(scan.A[at], Log2e);
  float h = start ? start[at] : 0.0f;
  for (int64_t slot = first; slot < first + count; slot++) {
    const bool last = slot == first + count - 1;
    const float end = last ? 0.0f : scan.ends[slot * size + at], total = last ? 0.0f : scan.totals[slot * scan.inner + channel];
    scan.ends[slot * size + at] = h;
    h = fmaf(exp2Fast(__fmul_rn(decay, total)), h, end);
  }
}

// The spare rows of a split scan.
// registers: 32
template <class T>
__global__ __launch_bounds__(Threads) void zeroSpare(const __grid_constant__ Scan<T> scan) {
  const int s = static_cast<int>(blockIdx.x / scan.blocks);
  const Place place = placeOf<8>(scan, blockIdx.x % scan.blocks);
  zeroSpareRows<8>(scan, readSegment(scan.segments, s), s, place.channel, place.channels);
}

// A few rows per segment, straight from global memory: four states per lane, no shared memory.
// registers: 48
template <class T, int S>
__global__ __launch_bounds__(Threads) void scanDirect(const __grid_constant__ Scan<T> scan) {
  constexpr int N = 4, Channels = Threads / S;
  const int s = static_cast<int>(blockIdx.x / scan.blocks), j = static_cast<int>(threadIdx.x % S), n = j * N;
  const int64_t first = int64_t{blockIdx.x % scan.blocks} * Channels, at = first + threadIdx.x / S;
  const bool mine = at < scan.inner;
  const int64_t channelAt = mine ? at : 0, size = scan.inner * scan.state, offset = channelAt * scan.state;
  const Segment segment = readSegment(scan.segments, s);
  const float bias = scan.bias ? scan.bias[channelAt] : 0.0f, D = scan.D ? scan.D[channelAt] : 0.0f;
  const float* start = stateBefore(scan, segment, s);
  Channel<S, N> channel;
  // Lanes without a channel leave the states alone: those they would read another lane may be writing.
  channel.load(scan.A + offset, mine && start ? start + offset : nullptr, n, scan.state);
  const int64_t band = channelAt / scan.perGroup * scan.state;
  const bool quads = scan.state % N == 0;
  const auto bandsAt = [&](const T* from, float (&to)[N]) {
    const bool whole = quads && n < scan.state;
    if (whole) loadVec<N>(from + n, to);
#pragma unroll
    for (int i = 0; i < N; i++)
      if (!whole) to[i] = n + i < scan.state ? toFloat(from[n + i]) : 0.0f;
  };
  for (int64_t row = segment.begin; row < segment.end; row++) {
    const int64_t within = row - segment.begin, here = row * scan.inner + channelAt;
    float B[N], C[N];
    bandsAt(scan.B + row * scan.bands + band, B);
    bandsAt(scan.C + row * scan.bands + band, C);
    if (scan.saved && mine && within % ops::ScanChunk == 0)
      channel.store(scan.saved + (savedChunk(segment.begin, s) + within / ops::ScanChunk) * size + offset, n, scan.state);
    const float x = toFloat(scan.x[here]), delta = stepSize(toFloat(scan.delta[here]) + bias, scan.softplus);
    const float sum = sumLanes<S>(channel.advance(delta, delta * x, B, C));
    if (scan.y && mine && j == 0) scan.y[here] = fromFloat<T>(finish(sum, D, x, scan.z ? scan.z + here : nullptr));
  }
  if (scan.final && mine) channel.store(scan.final + s * size + offset, n, scan.state);
  if (scan.carried && mine && isUsed(segment) && segment.to > 0)
    channel.store(scan.carried + segment.to * size + offset, n, scan.state);
  if (scan.y) zeroSpareRows<Channels>(scan, segment, s, first, static_cast<int>(min(int64_t{Channels}, scan.inner - first)));
}

constexpr int64_t LanesWanted = int64_t{132} * 4 * 2 * 32;
constexpr int64_t RowsPerSegment = 512;  // lines of segments may be unused: this many rows are taken to be one
constexpr int64_t DirectRows = 2;        // per segment, on average, up to which rows go without tiles


// SELSCAN_SCAN_SPLIT, read once.
const char* splitSetting() {
  static const char* const asked = std::getenv("SELSCAN_SCAN_SPLIT");
  return asked ? asked : "0";
}

// How a call is launched, from shapes and the setting alone.
struct Plan {
  int64_t rows, inner, state, lines, sequences, pieces = 0;  // pieces: 0 unless split
  bool direct;

  explicit Plan(const Call& call)
      : rows(call.inputs[0][0]), inner(call.inputs[0][1]), state(call.inputs[2][1]), lines(call.inputs[8][0]),
        sequences(std::clamp<int64_t>(rows / RowsPerSegment, 1, lines)), direct(rows <= DirectRows * lines) {
    const bool few = inner * sequences * 16 < LanesWanted && rows >= 2 * PieceRows && !direct;
    if (few && std::strcmp(splitSetting(), "1") == 0) pieces = ceilDiv(rows, PieceRows) + lines;
  }
  // Lanes per channel, at least `from`.
  int lanes(int from) const {
    int lanes = from;
    while (lanes < 16 && inner * sequences * lanes < LanesWanted) lanes *= 2;
    return lanes;
  }
  size_t workspaceBytes() const { return sizeof(float) * static_cast<size_t>(pieces * inner * (state + 1)); }
};

template <class T>
Scan<T> scanOf(const Call& call, const Plan& plan) {
  const auto [x, delta, A, B, C, D, z, bias, segments, initial, carried] = call.in<11>();
  const auto [y, final, saved] = call.out<3>();
  const int64_t bands = B[1], perGroup = plan.inner / (bands / plan.state);
  float* ends = plan.pieces > 0 ? reinterpret_cast<float*>(call.workspace) : nullptr;
  return {.x = dataOf<T>(x),
          .delta = dataOf<T>(delta),
          .B = dataOf<T>(B),
          .C = dataOf<T>(C),
          .z = dataOf<T>(z),
          .A = A.f32(),
          .D = D.f32(),
          .bias = bias.f32(),
          .initial = initial.f32(),
          .carried = carried.f32(),
          .y = dataOf<T>(y),
          .final = final.f32(),
          .saved = saved.f32(),
          .segments = segments.i32(),
          .rows = plan.rows,
          .inner = plan.inner,
          .bands = bands,
          .perGroup = perGroup,
          .state = static_cast<int>(plan.state),
          .lines = static_cast<int>(plan.lines),
          .softplus = call.attributes.flag("softplus"),
          .rowVectors = inVectors<T>(plan.direct ? plan.inner : perGroup),
          .bandVectors = inVectors<T>(plan.state),
          .blocks = 0,
          .blocksPerGroup = 0,
          .ends = ends,
          .totals = ends ? ends + plan.pieces * plan.inner * plan.state : nullptr};
}

template <class T, int S, int N>
void runTiles(const Call& call, const Plan& plan, Scan<T> scan) {
  CudaDevice& device = deviceOf(call);
  scan.blocksPerGroup = static_cast<unsigned>(ceilDiv(scan.perGroup, Threads / S));
  scan.blocks = scan.blocksPerGroup * static_cast<unsigned>(plan.inner / scan.perGroup);
  const auto grid = [&](int64_t count) {
    return Grid{static_cast<unsigned>(scan.blocks * count), Threads, sizeof(Tile<T, S, N>)};
  };
  if constexpr (S == 16) {
    if (plan.pieces > 0) {
      const auto blocks = static_cast<unsigned>(ceilDiv(plan.inner * plan.state, Threads));
      launch(device, grid(plan.pieces), scanPieces<true, T, S, N>, scan);
      launch(device, Grid{static_cast<unsigned>(blocks * plan.lines), Threads}, carryEnds<T>, scan, blocks);
      if (scan.y) launch(device, Grid{static_cast<unsigned>(scan.blocks * plan.lines), Threads}, zeroSpare<T>, scan);
    }
  }
  launch(device, grid(plan.pieces > 0 ? plan.pieces : plan.lines), scanPieces<false, T, S, N>, scan);
}

template <class T, int S>
void runDirect(const Call& call, const Plan& plan, Scan<T> scan) {
  scan.blocks = static_cast<unsigned>(ceilDiv(plan.inner, Threads / S));
  launch(deviceOf(call), Grid{static_cast<unsigned>(scan.blocks * plan.lines), Threads}, scanDirect<T, S>, scan);
}

template <class T>
void runAs(const Call& call) {
  const Plan plan(call);
  const Scan<T> scan = scanOf<T>(call, plan);
  const auto tiles = [&]<int S, int N>() { runTiles<T, S, N>(call, plan, scan); };
  const int state = plan.state <= 16 ? 16 : plan.state <= 32 ? 32 : 64, lanes = plan.lanes(state == 64 ? 8 : 4);
  switch (plan.direct ? state : 100 * state + lanes) {
    case 16: return runDirect<T, 4>(call, plan, scan);
    case 32: return runDirect<T, 8>(call, plan, scan);
    case 64: return runDirect<T, 16>(call, plan, scan);
    case 1604: return tiles.template operator()<4, 4>();
    case 1608: return tiles.template operator()<8, 2>();
    case 1616: return tiles.template operator()<16, 1>();
    case 3204: return tiles.template operator()<4, 8>();
    case 3208: return tiles.template operator()<8, 4>();
    case 3216: return tiles.template operator()<16, 2>();
    case 6408: return tiles.template operator()<8, 8>();
    default: return tiles.template operator()<16, 4>();
  }
}

void run(const Call& call) {
  withType(call.inputs[0].dtype, [&]<class T>() { runAs<T>(call); });
}

std::string limit(const Call& call) {
  if (const std::string wrong = ops::scanLimit(call); !wrong.empty()) return wrong;
  const std::string setting = splitSetting();
  if (setting != "0" && setting != "1") return "SELSCAN_SCAN_SPLIT is 0 or 1, got " + setting;
  const Plan plan(call);
  const int64_t groups = call.inputs[3][1] / plan.state, blocks = groups * ceilDiv(plan.inner / groups, Threads / 16);
  const int64_t most = std::max({blocks * std::max(plan.lines, plan.pieces), ceilDiv(plan.inner * plan.state, Threads) * plan.lines});
  return most < int64_t{1} << 31 ? "" : "a launch has below 2^31 blocks, got " + std::to_string(most) + " for inner·segments " +
                                            std::to_string(plan.inner * plan.lines);
}

KERNEL(selectiveScan, cuda, "x delta A B C D? z? bias? segments initial? carried?* -> y final saved; softplus",
       .run = run, .limit = limit, .workspaceBytes = [](const Call& call) { return Plan(call).workspaceBytes(); },
       .checkInputs = ops::checkScan)

}  // namespace
}  // namespace selscan::cuda
