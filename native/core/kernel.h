// What a kernel is, what it is given, and how it makes itself known.
//
// A kernel file ends with one line per kernel:
//
//   KERNEL(rmsNorm, cpu, "x weight residual? -> y sum rstd; eps", .run = forward)
//
// name and signature repeat the op of lib/ops (a contract test compares them); order is the order of call.in<N>() and
// call.out<N>(). An input that ends in '*' is written in place. A static registrar keeps the line: objects must be linked directly, never through a static library.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "core/check.h"
#include "core/dtype.h"

namespace selscan {

constexpr int RankMax = 6;

struct Shape {
  int rank = 0;
  std::array<int64_t, RankMax> dims{};
  int64_t operator[](int i) const { return dims[i]; }
  int64_t elements() const {
    int64_t product = 1;
    for (int i = 0; i < rank; i++) product *= dims[i];
    return product;
  }
  bool operator==(const Shape&) const = default;
};
std::string text(const Shape&);

enum class Storage : uint8_t { temporary = 0, input = 1, weight = 2, training = 3, state = 4, ring = 5 };
constexpr int StorageCount = 6;

// A typed view of memory the runtime owns. Row-major, contiguous, 64-byte aligned.
struct Tensor {
  std::byte* data = nullptr;  // null: an optional input that is absent, or an output that nobody reads
  Dtype dtype = Dtype::f32;
  Storage storage = Storage::temporary;
  Shape shape;
  bool given = false;  // set before there is memory: a scalar and an absent tensor have the same shape

  explicit operator bool() const { return data != nullptr; }
  int64_t operator[](int dim) const { return shape[dim]; }
  int64_t elements() const { return shape.elements(); }
  size_t sizeBytes() const { return static_cast<size_t>(elements()) * selscan::sizeBytes(dtype); }
  float* f32() const { return reinterpret_cast<float*>(data); }
  int32_t* i32() const { return reinterpret_cast<int32_t*>(data); }
  uint16_t* half() const { return reinterpret_cast<uint16_t*>(data); }
};

using Attribute = std::variant<double, bool, std::string>;
struct Attributes {
  std::vector<std::pair<std::string, Attribute>> entries;
  const Attribute& at(std::string_view name) const;
  double number(std::string_view name) const { return std::get<double>(at(name)); }
  bool flag(std::string_view name) const { return std::get<bool>(at(name)); }
  const std::string& word(std::string_view name) const { return std::get<std::string>(at(name)); }
};

struct Device;

// One node about to run.
struct Call {
  std::span<const Tensor> inputs, outputs;
  const Attributes& attributes;
  Device& device;
  std::byte* workspace = nullptr;             // workspaceBytes(call) bytes, 64-byte aligned, contents arbitrary
  std::span<std::byte* const> prepared = {};  // per input: its prepared form, or null

  // const auto [x, weight, residual] = call.in<3>();
  template <int N>
  std::array<Tensor, N> in() const { return take<N>(inputs); }
  template <int N>
  std::array<Tensor, N> out() const { return take<N>(outputs); }

 private:
  template <int N>
  static std::array<Tensor, N> take(std::span<const Tensor> from) {
    check(from.size() == N, "NATIVE", "kernel: takes ", N, " tensors, got ", from.size());
    std::array<Tensor, N> tensors;
    for (int i = 0; i < N; i++) tensors[i] = from[i];
    return tensors;
  }
};

// A form of an input that a kernel reads instead of the plain tensor (for example, packed panels of a weight). The forms
// of weights are kept beside the weight and made anew when it has changed; those of other values are made on each run.
struct Preparation {
  const char* name;
  size_t (*bytes)(const Tensor&);
  void (*run)(const Tensor&, std::byte* prepared, Device&);
  // Where every so many rows have a form of their own, one after another, and restore() undoes run(): the runtime may keep a weight in
  // this form alone. 0, or false of holds(): the rows mix, or the form has lost something of the tensor.
  int64_t blockRows = 0;
  bool (*holds)(const Tensor&) = nullptr;
  void (*restore)(const std::byte* prepared, const Tensor& to) = nullptr;
};

struct KernelInfo {
  void (*run)(const Call&) = nullptr;
  // Runs consecutive nodes of this kernel at once; for kernels with neither outputs nor workspace, whose nodes update
  // different values (an optimizer's step over all parameters).
  void (*runAll)(std::span<const Call>) = nullptr;
  // The limit that this call's shapes or dtypes break, in words ("state is 1 to 64, got 80"); empty when none. Asked at compile().
  std::string (*limit)(const Call&) = nullptr;
  size_t (*workspaceBytes)(const Call&) = nullptr;
  const Preparation* (*prepare)(const Call&, int input) = nullptr;
  // A prepared input is read as it lies, too.
  bool readsPlain = false;
  // An input is read prepared or, where that is null, as it lies: nothing is prepared of a weight that the program changes.
  bool readsEither = false;
  // Judges the *values* of host inputs that the kernel uses as indices (ids, segments) before anything of the run is
  // executed; throws BAD_INPUT. Only inputs with storage == Storage::input hold data at that time.
  void (*checkInputs)(const Call&) = nullptr;
  // Output `first` may be written over input `second` when that input dies here (same size, elementwise).
  std::vector<std::pair<int, int>> inPlace = {};
};

struct Kernel {
  std::string name, device, signature;
  std::vector<std::string> inputs, outputs, attributes;  // of the signature; optional ones end in '?'
  std::vector<int> updates;                              // positions of the inputs that are written in place
  KernelInfo info;
};

const std::vector<Kernel>& kernels();
const Kernel* findKernel(std::string_view device, std::string_view name);

struct Register {
  Register(const char* name, const char* device, const char* signature, KernelInfo info);
};
// The device's name is expanded: .cu files are compiled for the device `emulated` with cuda=emulated.
#define KERNEL(name, device, signature, ...) KERNEL_OF(register_##name, #name, device, signature, __VA_ARGS__)
#define KERNEL_OF(variable, name, device, signature, ...) \
  static const ::selscan::Register variable##_##device{name, #device, signature, ::selscan::KernelInfo{__VA_ARGS__}};

}  // namespace selscan
