// A device that records, and what tests of programs on it share: three weights and an input of four words each.
#pragma once
#include "core/executable.h"

#include <cstdlib>
#include <cstring>

#include "check.h"

namespace toy {

using namespace selscan;
using Ids = std::vector<int>;

constexpr int64_t Elements = 4;
constexpr int Weights = 3;

struct Toy final : Device {
  std::vector<std::function<void()>>* recorded = nullptr;
  int allocationsLeft = -1;      // −1: any number
  int faultIn = 0, abortIn = 0;  // pieces of work until one fails, or until the run is aborted; 0 for never
  std::atomic<bool> abort = false;

  void submit(std::function<void()> work) {
    if (abortIn > 0 && --abortIn == 0) abort = true;
    check(faultIn == 0 || --faultIn > 0, "NATIVE", "toy: a fault");
    if (recorded) recorded->push_back(std::move(work));
    else work();
  }
  struct Replay final : Recording {
    Toy& toy;
    std::vector<std::function<void()>> work;
    explicit Replay(Toy& toy) : toy(toy) {}
    void replay() override {
      for (const auto& piece : work) toy.submit(piece);
    }
  };
  bool records() const override { return true; }
  std::unique_ptr<Recording> record(const std::function<void()>& work) override {
    auto made = std::make_unique<Replay>(*this);
    recorded = &made->work;
    try {
      work();
    } catch (...) {
      recorded = nullptr;
      throw;
    }
    recorded = nullptr;
    return made;
  }

  const char* name() const override { return "toy"; }
  std::byte* allocate(size_t bytes) override {
    check(allocationsLeft != 0, "OUT_OF_MEMORY", "toy: ", bytes, " bytes could not be had");
    allocationsLeft -= allocationsLeft > 0;
    return static_cast<std::byte*>(std::calloc(1, bytes));
  }
  void release(std::byte* data) override { std::free(data); }
  void toDevice(std::byte* to, const std::byte* from, size_t bytes) override { copy(to, from, bytes); }
  void toHost(std::byte* to, const std::byte* from, size_t bytes) override { copy(to, from, bytes); }
  void copy(std::byte* to, const std::byte* from, size_t bytes) override { std::memmove(to, from, bytes); }
  void synchronize() override {}
  std::string describe() const override { return "toy"; }
};

using Bytes = std::vector<std::byte>;
inline Bytes bytesOf(const std::vector<uint32_t>& values) {
  Bytes bytes(values.size() * 4);
  std::memcpy(bytes.data(), values.data(), bytes.size());
  return bytes;
}

// Weights are values 0, 1, 2; the input is 3.
struct Maker {
  Program program;
  explicit Maker(const std::string& name) {
    program.name = name;
    for (int i = 0; i < Weights; i++) value(Storage::weight, "w" + std::to_string(i));
    value(Storage::input, "x");
  }
  int value(Storage storage, const std::string& name) {
    program.values.push_back({storage, Dtype::i32, Shape{.rank = 1, .dims = {Elements}}, name});
    return static_cast<int>(program.values.size()) - 1;
  }
  int node(const std::string& op, const Ids& inputs) {
    const int y = op == "addTo" ? Absent : value(Storage::temporary, "");
    program.nodes.push_back({op, "layers.7", inputs, y == Absent ? Ids{} : Ids{y}, y == Absent ? Ids{0} : Ids{}, {}});
    return y;
  }
};

struct Bench {
  Toy toy;
  std::shared_ptr<Store> store = std::make_shared<Store>(toy);

  Entry& weight(int i) {
    return store->entry(Storage::weight, "w" + std::to_string(i), Dtype::i32, Shape{.rank = 1, .dims = {Elements}});
  }
  Bytes stored(int i) {
    Bytes bytes(weight(i).sizeBytes());
    store->read(weight(i), 0, bytes);
    return bytes;
  }
  std::vector<Bytes> run(Executable& executable, const Bytes& x) {
    toy.abort = false;
    return executable.run({x}, toy.abort);
  }
  // The outputs of a run, then the weights that it leaves; of one in a new store.
  std::vector<Bytes> alone(const Program& program, const Bytes& x) {
    Bench fresh;
    for (int i = 0; i < Weights; i++) fresh.store->write(fresh.weight(i), 0, stored(i));
    Executable executable(fresh.store, program);
    auto all = fresh.run(executable, x);
    for (int i = 0; i < Weights; i++) all.push_back(fresh.stored(i));
    return all;
  }
  std::string outcome(Executable& executable, const Bytes& x) {
    try {
      run(executable, x);
      return "done";
    } catch (const Error& error) {
      return error.code + " " + error.what();
    }
  }
  void agrees(Executable& executable, const Bytes& x) {
    const auto expected = alone(executable.program(), x);
    auto got = run(executable, x);
    for (int i = 0; i < Weights; i++) got.push_back(stored(i));
    CHECK(got == expected, executable.program().name);
  }
};

inline const Bytes One = bytesOf({1, 1, 1, 1}), Two = bytesOf({2, 3, 5, 7});

}  // namespace toy
