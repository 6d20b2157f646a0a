// A program as lib/graph/program.ts serialises it: values of fixed shape and a flat list of nodes over them.
#pragma once
#include <span>
#include <string>
#include <vector>

#include "core/kernel.h"

namespace selscan {

constexpr int Absent = -1;

struct ProgramValue {
  Storage storage;
  Dtype dtype;
  Shape shape;
  std::string name;  // of stored values and inputs; empty for temporaries
  size_t sizeBytes() const { return static_cast<size_t>(shape.elements()) * selscan::sizeBytes(dtype); }
};

struct ProgramNode {
  std::string op, path;
  std::vector<int> inputs, outputs;  // value ids in signature order, or Absent
  std::vector<int> updates;          // positions in inputs that are written in place
  Attributes attributes;
  std::string where() const { return path.empty() ? op : path + ": " + op; }  // for errors
};

struct Program {
  std::string name;
  std::vector<ProgramValue> values;
  std::vector<ProgramNode> nodes;
  std::vector<int> outputs;  // values copied back to the host after each run
};

// Decodes and checks well-formedness: sizes that multiply without overflow, ids in range, every temporary written once and
// before it is read, stored values never written but through `updates`. Throws BAD_FILE.
Program decodeProgram(std::span<const std::byte> bytes);

// Reads little-endian fields off a span; running past the end throws BAD_FILE.
class Reader {
 public:
  explicit Reader(std::span<const std::byte> bytes) : bytes_(bytes) {}
  template <class T>
  T value() {
    T out;
    std::memcpy(&out, take(sizeof(T)).data(), sizeof(T));
    return out;
  }
  std::string string() {
    const auto length = value<uint32_t>();
    const auto part = take(length);
    return {reinterpret_cast<const char*>(part.data()), part.size()};
  }
  std::span<const std::byte> take(size_t count) {
    check(count <= bytes_.size(), "BAD_FILE", "program: ends in the middle of a field");
    const auto part = bytes_.first(count);
    bytes_ = bytes_.subspan(count);
    return part;
  }
  size_t left() const { return bytes_.size(); }

 private:
  std::span<const std::byte> bytes_;
};

uint64_t fnv1a(std::span<const std::byte> bytes);

}  // namespace selscan
