// The decoder on damaged programs: whatever the bytes are, it gives a well-formed program or throws BAD_FILE.
#include "core/program.h"

#include <functional>
#include <random>

#include "check.h"

namespace {

using selscan::Absent;
using selscan::Program;
using Bytes = std::vector<std::byte>;

struct Writer {
  Bytes bytes;
  template <class T>
  Writer& add(T value) {
    const auto* data = reinterpret_cast<const std::byte*>(&value);
    bytes.insert(bytes.end(), data, data + sizeof(T));
    return *this;
  }
  Writer& text(const std::string& string) {
    add(static_cast<uint32_t>(string.size()));
    for (const char c : string) add(c);
    return *this;
  }
  Writer& value(uint8_t storage, std::vector<int64_t> shape, const std::string& name) {
    add(storage).add(uint8_t{0}).add(static_cast<uint8_t>(shape.size()));
    for (const int64_t size : shape) add(size);
    return text(name);
  }
  Writer& ids(std::vector<int32_t> ids) {
    add(static_cast<uint32_t>(ids.size()));
    for (const int32_t id : ids) add(id);
    return *this;
  }
  Bytes closed() const {
    Writer copy = *this;
    copy.add(selscan::fnv1a(bytes));
    return copy.bytes;
  }
};

// x, weight → scale → accumulate: every field kind of the format.
Writer program(int32_t reads = 0, int32_t writes = 2, int32_t output = 2, int64_t size = 3) {
  Writer writer;
  writer.add(uint32_t{0x31505353}).text("test").add(uint32_t{3});
  writer.value(1, {size, 4}, "x").value(3, {3, 4}, "total").value(0, {3, 4}, "");
  writer.add(uint32_t{2});
  writer.text("scale").text("layers.0").ids({reads}).ids({writes}).ids({});
  writer.add(uint32_t{3}).text("factor").add(uint8_t{0}).add(0.5).text("flag").add(uint8_t{1}).add(uint8_t{1}).text("mode").add(uint8_t{2}).text("x");
  writer.text("accumulate").text("").ids({1, 2}).ids({}).ids({0}).add(uint32_t{0});
  writer.ids({output});
  return writer;
}

bool wellFormed(const Program& decoded) {
  const int values = static_cast<int>(decoded.values.size());
  for (const auto& node : decoded.nodes) {
    for (const auto* ids : {&node.inputs, &node.outputs})
      for (const int id : *ids)
        if (id < Absent || id >= values) return false;
    for (const int update : node.updates)
      if (update < 0 || update >= static_cast<int>(node.inputs.size())) return false;
  }
  for (const auto& value : decoded.values)
    for (int i = 0; i < value.shape.rank; i++)
      if (value.shape[i] < 1 || value.shape.elements() < value.shape[i]) return false;
  for (const int id : decoded.outputs)
    if (id < 0 || id >= values) return false;
  return true;
}

// "" when decoding succeeds with a well-formed program, else the error's message; anything but BAD_FILE is a failure.
std::string outcome(const Bytes& bytes) {
  try {
    CHECK(wellFormed(selscan::decodeProgram(bytes)));
    return "";
  } catch (const selscan::Error& error) {
    CHECK(error.code == "BAD_FILE", error.code, error.what());
    return error.what();
  }
}

void refused(const Bytes& bytes, const std::string& part) {
  const std::string message = outcome(bytes);
  CHECK(message.find(part) != std::string::npos, "expected", part, "got", message);
}

}  // namespace

TEST("a program decodes to what was written") {
  const Program decoded = selscan::decodeProgram(program().closed());
  CHECK(decoded.name == "test" && decoded.values.size() == 3 && decoded.nodes.size() == 2);
  CHECK(decoded.nodes[0].path == "layers.0" && decoded.nodes[0].attributes.number("factor") == 0.5);
  CHECK(decoded.nodes[0].attributes.flag("flag") && decoded.nodes[0].attributes.word("mode") == "x");
  CHECK(decoded.values[0].name == "x" && decoded.values[0].sizeBytes() == 48);
  CHECK(decoded.nodes[1].updates == std::vector<int>{0} && decoded.outputs == std::vector<int>{2});
}

TEST("a program of the wrong order is refused") {
  refused(program(2).closed(), "reads value 2 before it is written");
  refused(program(0, 0).closed(), "writes value 0, which already has a value");
  refused(program(0, Absent).closed(), "reads value 2 before it is written");
  refused(program(0, 2, Absent).closed(), "output -1 is never written");
  refused(program(0, 2, 7).closed(), "value 7 does not exist");
  refused(program(0, 2, 2, 0).closed(), "size 0 in dimension 0");
  refused(program(0, 2, 2, int64_t{1} << 43).closed(), "in dimension 1");
}

TEST("every single flipped bit is refused by the checksum") {
  const Bytes good = program().closed();
  for (size_t i = 0; i < good.size() * 8; i++) {
    Bytes bad = good;
    bad[i / 8] ^= std::byte{1} << (i % 8);
    refused(bad, "checksum differs");
  }
}

TEST("every truncation is refused") {
  const Bytes good = program().closed();
  for (size_t length = 0; length < good.size(); length++) CHECK(!outcome({good.begin(), good.begin() + static_cast<long>(length)}).empty(), length);
  Writer longer = program();
  longer.add(uint8_t{0});
  refused(longer.closed(), "1 bytes follow its end");
}

TEST("random damage under a matching checksum decodes well-formed or is refused") {
  std::mt19937 random(2);
  const Bytes body = program().bytes;
  int survived = 0;
  for (int round = 0; round < 50'000; round++) {
    Writer damaged;
    damaged.bytes = body;
    if (random() % 4 == 0) damaged.bytes.resize(random() % body.size());
    for (uint32_t flips = 1 + random() % 4; flips > 0 && !damaged.bytes.empty(); flips--) {
      // Often a whole small or extreme byte: lengths and ids live there.
      auto& byte = damaged.bytes[random() % damaged.bytes.size()];
      constexpr uint8_t Extremes[] = {0, 1, 2, 0x7f, 0x80, 0xff};
      byte = random() % 2 ? std::byte{Extremes[random() % 6]} : byte ^ (std::byte{1} << (random() % 8));
    }
    survived += outcome(damaged.closed()).empty();
  }
  CHECK(survived > 0 && survived < 50'000, survived);
}
