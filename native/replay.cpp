// selscan-replay: runs a serialised program with stored values, inputs and expected outputs, with no Node in the process, so
// that sanitizers, profilers and bare machines see exactly what Node would run. lib/graph/replay.ts writes the files.
#include <algorithm>
#include <cstdio>
#include <fstream>
#include <iostream>

#include "core/executable.h"
#include "cpu/threads.h"

namespace selscan {
namespace {

constexpr const char* Usage =
    "usage: selscan-replay FILE [--device NAME] [--repeat N] [--threads N] [--profile]\n\n"
    "Runs a replay file, compares what comes out with what the file expects, and times it.\n"
    "  --device     cpu (default), cuda, cuda:N or, in developer builds, emulated\n"
    "  --repeat N   runs N times (default 1); the first run is compared, since a run may change stored values\n"
    "  --threads N  size of the thread pool (default: all usable cores)\n"
    "  --profile    time of every node\n"
    "Exits 1 when an output differs, 2 when the file or the arguments are unusable.\n";

struct Options {
  std::string file, device = "cpu";
  int repeat = 1, threads = 0;
  bool profile = false;
};

// What the run should have left: a program output, or a stored value that the program updates.
struct Expected {
  Storage storage;  // temporary: an output of the program
  std::string name;
  Dtype dtype;
  double rtol;  // relative to the largest magnitude expected
  std::span<const std::byte> bytes;
};

struct Stored {
  Storage storage;
  std::string name;
  Dtype dtype;
  Shape shape;
  std::span<const std::byte> bytes;
};

struct Replay {
  Program program;
  std::vector<Stored> stored;
  std::vector<std::vector<std::byte>> inputs;
  std::vector<Expected> expected;
};

int wholeNumber(const std::string& name, const std::string& text, int low) {
  char* end = nullptr;
  const long value = std::strtol(text.c_str(), &end, 10);
  check(!text.empty() && *end == 0 && value >= low && value <= 1'000'000, "BAD_OPTION", name, ": a whole number from ", low,
        " to 1000000 is expected, got ", text);
  return static_cast<int>(value);
}

Options parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; i++) {
    const std::string word = argv[i];
    const auto next = [&]() -> std::string {
      check(i + 1 < argc, "BAD_OPTION", word, ": a value is expected after it");
      return argv[++i];
    };
    if (word == "--device") options.device = next();
    else if (word == "--repeat") options.repeat = wholeNumber(word, next(), 1);
    else if (word == "--threads") options.threads = wholeNumber(word, next(), 0);
    else if (word == "--profile") options.profile = true;
    else {
      check(!word.starts_with("--") && options.file.empty(), "BAD_OPTION", word, ": is not understood\n", Usage);
      options.file = word;
    }
  }
  check(!options.file.empty(), "BAD_OPTION", "a replay file is expected\n", Usage);
  return options;
}

std::vector<std::byte> readFile(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  check(stream.good(), "NOT_FOUND", path, ": cannot be opened");
  const std::string text{std::istreambuf_iterator<char>(stream), {}};
  const auto* data = reinterpret_cast<const std::byte*>(text.data());
  return {data, data + text.size()};
}

std::span<const std::byte> block(Reader& reader) {
  const auto size = reader.value<int64_t>();
  check(size >= 0, "BAD_FILE", "replay: a block has ", size, " bytes");
  return reader.take(static_cast<size_t>(size));
}

Dtype dtypeOf(Reader& reader) {
  const int dtype = reader.value<uint8_t>();
  check(dtype < DtypeCount, "BAD_FILE", "replay: unknown dtype ", dtype);
  return static_cast<Dtype>(dtype);
}

Storage storageOf(Reader& reader) {
  const int storage = reader.value<uint8_t>();
  check(storage == 0 || (storage >= static_cast<int>(Storage::weight) && storage < StorageCount), "BAD_FILE",
        "replay: unknown storage ", storage);
  return static_cast<Storage>(storage);
}

Stored decodeStored(Reader& reader) {
  Stored stored{.storage = storageOf(reader), .name = reader.string(), .dtype = dtypeOf(reader), .shape = {}, .bytes = {}};
  check(stored.storage != Storage::temporary, "BAD_FILE", "replay: ", stored.name, " is stored, but said to be temporary");
  stored.shape.rank = reader.value<uint8_t>();
  check(stored.shape.rank <= RankMax, "BAD_FILE", "replay: ", stored.name, " has rank ", stored.shape.rank);
  int64_t elements = 1;
  for (int i = 0; i < stored.shape.rank; i++) {
    const auto size = stored.shape.dims[i] = reader.value<int64_t>();
    check(size >= 1 && size <= (int64_t{1} << 44) / elements, "BAD_FILE", "replay: ", stored.name, " has size ", size, " in dimension ", i);
    elements *= size;
  }
  stored.bytes = block(reader);
  check(stored.bytes.size() == static_cast<size_t>(elements) * sizeBytes(stored.dtype), "BAD_FILE", "replay: ", stored.name, " is ",
        text(stored.shape), " of ", name(stored.dtype), ", got ", stored.bytes.size(), " bytes");
  return stored;
}

// The spans of the result point into `bytes`.
Replay decode(std::span<const std::byte> bytes) {
  check(bytes.size() >= 12, "BAD_FILE", "replay: is ", bytes.size(), " bytes long, too short to be a replay file");
  const auto body = bytes.first(bytes.size() - 8);
  check(Reader(bytes.last(8)).value<uint64_t>() == fnv1a(body), "BAD_FILE", "replay: checksum differs; the file was damaged");
  Reader reader(body);
  check(reader.value<uint32_t>() == 0x31525353, "BAD_FILE", "replay: does not begin with SSR1");
  Replay replay{.program = decodeProgram(block(reader)), .stored = {}, .inputs = {}, .expected = {}};
  for (auto left = reader.value<uint32_t>(); left > 0; left--) replay.stored.push_back(decodeStored(reader));
  for (auto left = reader.value<uint32_t>(); left > 0; left--) {
    const auto input = block(reader);
    replay.inputs.emplace_back(input.begin(), input.end());
  }
  for (auto left = reader.value<uint32_t>(); left > 0; left--) {
    Expected expected{.storage = storageOf(reader), .name = reader.string(), .dtype = dtypeOf(reader), .rtol = 0, .bytes = {}};
    expected.rtol = reader.value<double>();
    expected.bytes = block(reader);
    replay.expected.push_back(std::move(expected));
  }
  check(reader.left() == 0, "BAD_FILE", "replay: ", reader.left(), " bytes follow its end");
  return replay;
}

double elementAt(std::span<const std::byte> bytes, Dtype dtype, size_t i) {
  const std::byte* at = bytes.data() + i * sizeBytes(dtype);
  const auto load = [&]<class T>(T value) {
    std::memcpy(&value, at, sizeof(T));
    return value;
  };
  switch (dtype) {
    case Dtype::f32: return load(float{});
    case Dtype::i32: return load(int32_t{});
    case Dtype::i8: return load(int8_t{});
    case Dtype::bf16: return fromBf16(load(uint16_t{}));
    case Dtype::f16: return fromF16(load(uint16_t{}));
  }
  return 0;
}

// Prints the largest difference; whether it is within the tolerance.
bool compare(const Expected& expected, std::span<const std::byte> got) {
  const std::string name = expected.name;
  if (got.size() != expected.bytes.size()) {
    std::printf("  FAIL %-40s %zu bytes expected, got %zu\n", name.c_str(), expected.bytes.size(), got.size());
    return false;
  }
  double largest = 0, worst = 0;
  size_t where = 0;
  for (size_t i = 0; i < got.size() / sizeBytes(expected.dtype); i++) {
    const double want = elementAt(expected.bytes, expected.dtype, i), have = elementAt(got, expected.dtype, i);
    if (std::isfinite(want)) largest = std::max(largest, std::abs(want));
    if (want == have || (std::isnan(want) && std::isnan(have))) continue;
    const double difference = std::abs(want - have);
    if (difference <= worst) continue;  // false for NaN: it is the worst
    worst = difference;
    where = i;
    if (std::isnan(difference)) break;
  }
  const bool same = worst <= expected.rtol * largest;
  std::printf("  %s %-40s largest difference %.3g at [%zu] of magnitudes to %.3g, allowed %.3g\n", same ? "ok  " : "FAIL", name.c_str(), worst,
              where, largest, expected.rtol * largest);
  return same;
}

// Bytes of all tensors that a node reads and writes: what it moves at least when nothing stays in a cache.
double nodeBytes(const Program& program, const ProgramNode& node) {
  double bytes = 0;
  for (const auto* ids : {&node.inputs, &node.outputs})
    for (const int id : *ids)
      if (id != Absent) bytes += static_cast<double>(program.values[id].sizeBytes());
  return bytes;
}

void printProfile(const Executable& executable, int runs) {
  const Program& program = executable.program();
  std::printf("  %10s %8s  node\n", "ms", "GB/s");
  for (size_t i = 0; i < program.nodes.size(); i++) {
    const ProgramNode& node = program.nodes[i];
    const double seconds = executable.seconds()[i] / runs;
    std::printf("  %10.4f %8.2f  %s%s%s\n", seconds * 1e3, nodeBytes(program, node) / std::max(seconds, 1e-9) / 1e9, node.op.c_str(),
                node.path.empty() ? "" : "  @", node.path.c_str());
  }
}

int replay(const Options& options) {
  const auto bytes = readFile(options.file);
  Replay file = decode(bytes);
  Device& target = device(options.device);
  cpu::setThreadCount(options.threads);
  auto store = std::make_shared<Store>(target);
  for (const Stored& stored : file.stored) store->write(store->entry(stored.storage, stored.name, stored.dtype, stored.shape), 0, stored.bytes);

  Executable executable(store, std::move(file.program), options.profile);
  const Program& program = executable.program();
  check(std::all_of(program.outputs.begin(), program.outputs.end(), [](int id) { return id != Absent; }) &&
            static_cast<size_t>(std::count_if(file.expected.begin(), file.expected.end(), [](const Expected& e) {
              return e.storage == Storage::temporary;
            })) == program.outputs.size(),
        "BAD_FILE", "replay: the program has ", program.outputs.size(), " outputs, and the file expects another number");

  const std::atomic<bool> abort{false};
  std::vector<double> times;
  bool same = true;
  for (int run = 0; run < options.repeat; run++) {
    const auto begin = std::chrono::steady_clock::now();
    const auto results = executable.run(file.inputs, abort);
    times.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
    if (run > 0) continue;
    size_t output = 0;
    for (const Expected& expected : file.expected) {
      if (expected.storage == Storage::temporary) {
        same &= compare(expected, results[output++]);
        continue;
      }
      const Entry& entry = store->existing(expected.storage, expected.name);
      std::vector<std::byte> updated(entry.sizeBytes());
      store->read(entry, 0, updated);
      target.synchronize();
      same &= compare(expected, updated);
    }
  }
  std::sort(times.begin(), times.end());
  double moved = 0;
  for (const ProgramNode& node : program.nodes) moved += nodeBytes(program, node);
  if (options.profile) printProfile(executable, options.repeat);
  std::printf("%s: %zu nodes, arena %zu bytes, %s\n", program.name.c_str(), program.nodes.size(), executable.peakBytes(), target.describe().c_str());
  std::printf("%d runs: %.3f ms at best, %.3f ms median, %.2f GB/s of tensors\n", options.repeat, times.front() * 1e3,
              times[times.size() / 2] * 1e3, moved / times.front() / 1e9);
  return same ? 0 : 1;
}

}  // namespace
}  // namespace selscan

int main(int argc, char** argv) {
  if (argc == 2 && std::string(argv[1]) == "--help") {
    std::cout << selscan::Usage;
    return 0;
  }
  try {
    return selscan::replay(selscan::parse(argc, argv));
  } catch (const std::exception& error) {
    std::cerr << "selscan-replay: " << error.what() << "\n";
    return 2;
  }
}
