// A program from a file may state any shapes: every kernel of the scan and the convolution refuses those that do not fit
// together, one changed size or missing dimension at a time.
#include "check.h"
#include "core/device.h"
#include "core/dims.h"

namespace selscan::test {
namespace {

using Shapes = std::vector<std::vector<int64_t>>;
constexpr int64_t Rows = 70, Inner = 6, State = 2, Bands = 4, Segments = 3, Slots = 5, Chunks = 5, Width = 3, Tail = 2;

std::vector<Tensor> tensors(const Shapes& shapes, int i32) {
  std::vector<Tensor> all(shapes.size());
  for (size_t i = 0; i < shapes.size(); i++) {
    all[i].dtype = static_cast<int>(i) == i32 ? Dtype::i32 : Dtype::f32;
    all[i].given = true;
    all[i].shape.rank = static_cast<int>(shapes[i].size());
    for (size_t d = 0; d < shapes[i].size(); d++) all[i].shape.dims[d] = shapes[i][d];
  }
  return all;
}

struct Refusals {
  const char* kernel;
  int segments;  // position of the i32 input
  const char* device = "cpu";

  std::string limit(const Shapes& inputs, const Shapes& outputs, int i32) const {
    const auto in = tensors(inputs, i32), out = tensors(outputs, -1);
    const Attributes attributes;
    const Call call{in, out, attributes, selscan::device(device)};
    return findKernel(device, kernel)->info.limit(call);
  }

  void onAll(const Shapes& inputs, const Shapes& outputs) {
    for (const char* name : {"cpu", "emulated"}) {
      device = name;
      run(inputs, outputs);
    }
  }

  void run(const Shapes& inputs, const Shapes& outputs) const {
    CHECK(limit(inputs, outputs, segments).empty(), kernel, limit(inputs, outputs, segments));
    CHECK(!limit(inputs, outputs, -1).empty(), kernel, "segments as f32");
    for (size_t side = 0; side < 2; side++) {
      const Shapes& shapes = side == 0 ? inputs : outputs;
      for (size_t i = 0; i < shapes.size(); i++)
        for (size_t d = 0; d < shapes[i].size(); d++) {
          if (shapes[i][d] == Slots) continue;  // any number of slots will do
          for (const int64_t size : {shapes[i][d] + 1, int64_t{1} << 40}) refuses(inputs, outputs, side, i, [&](auto& s) { s[d] = size; });
          refuses(inputs, outputs, side, i, [&](auto& s) { s.erase(s.begin() + static_cast<long>(d)); });
        }
    }
  }

  template <class Change>
  void refuses(Shapes inputs, Shapes outputs, size_t side, size_t i, Change change) const {
    auto& shape = side == 0 ? inputs[i] : outputs[i];
    change(shape);
    CHECK(!limit(inputs, outputs, segments).empty(), kernel, side == 0 ? "input" : "output", i);
  }
};

const std::vector<int64_t> rows{Rows, Inner}, bands{Rows, Bands}, states{Segments, Inner, State}, tails{Segments, Inner, Tail},
    saved{Chunks, Inner, State}, A{Inner, State}, inner{Inner}, weight{Inner, 1, Width}, lines{Segments, 5};

}  // namespace

TEST("selectiveScan refuses shapes that do not fit together") {
  Refusals{"selectiveScan", 8}.onAll({rows, rows, A, bands, bands, inner, rows, inner, lines, states, {Slots, Inner, State}}, {rows, states, saved});
}
TEST("selectiveScanGrad refuses shapes that do not fit together") {
  Refusals{"selectiveScanGrad", 10}.onAll({rows, states, rows, rows, A, bands, bands, inner, rows, inner, lines, saved},
                                          {rows, rows, A, bands, bands, inner, rows, inner, states});
}
TEST("causalConv refuses shapes that do not fit together") {
  Refusals{"causalConv", 3}.onAll({rows, weight, inner, lines, tails, {Slots, Inner, Tail}}, {rows, tails, tails});
}
TEST("causalConvGrad refuses shapes that do not fit together") {
  Refusals{"causalConvGrad", 5}.onAll({rows, tails, rows, weight, inner, lines, tails}, {rows, weight, inner, tails});
}
TEST("every kernel holds the shapes it is given") {
  for (const Kernel& kernel : kernels())
    if (kernel.device == "cpu" || kernel.device == "emulated") CHECK(kernel.info.limit != nullptr, kernel.device, kernel.name);
}
TEST("elementwise kernels take one shape alone, and an attribute's size is the output's") {
  const auto limit = [](const char* kernel, const Shapes& inputs, const Shapes& outputs, const Attributes& attributes = {}) {
    const auto in = tensors(inputs, -1), out = tensors(outputs, -1);
    const Call call{in, out, attributes, device("cpu")};
    return findKernel("cpu", kernel)->info.limit(call);
  };
  CHECK(limit("add", {{4, 3}, {4, 3}}, {{4, 3}}).empty());
  CHECK(!limit("add", {{4, 3}, {3, 4}}, {{4, 3}}).empty());
  CHECK(!limit("add", {{4, 3}, {4, 3}}, {{4}}).empty());
  CHECK(!limit("adamW", {{4}, {4}, {4}, {3}, {}, {}, {}}, {}).empty());
  CHECK(limit("broadcast", {{}}, {{5}}, {{{"rows", 5.0}}}).empty());
  CHECK(!limit("broadcast", {{}}, {{5}}, {{{"rows", 6.0}}}).empty());
}

}  // namespace selscan::test
