// cuBLAS through dlopen. The declarations are ours: names, enumerators and argument types of its C interface, which have been the
// same since version 11; a product with a known result is computed when the library is opened, and must agree.
#include "cuda/cublas.h"

#include <dlfcn.h>

#include <cstdlib>
#include <map>
#include <memory>

namespace selscan::cuda {
namespace {

// Enumerators as in cublas_api.h and library_types.h.
enum Operation : int { Plain = 0, Transposed = 1 };
enum DataType : int { Float32 = 0, Bfloat16 = 14 };
constexpr int ComputeFloat32 = 68, DefaultAlgorithm = -1, MajorVersion = 0;
constexpr size_t WorkspaceBytes = size_t{32} << 20;  // what NVIDIA recommends for Hopper; ours, since a graph must find it again
constexpr int64_t SizeMin = 256;

// The library's functions; each returns 0 for success.
struct Functions {
  int (*create)(void** handle);
  int (*destroy)(void* handle);
  int (*getProperty)(int property, int* value);
  int (*setStream)(void* handle, cudaStream_t stream);
  int (*setWorkspace)(void* handle, void* workspace, size_t bytes);
  int (*gemmEx)(void* handle, int operationA, int operationB, int m, int n, int k, const void* alpha, const void* a, int typeA,
                int strideA, const void* b, int typeB, int strideB, const void* beta, void* c, int typeC, int strideC,
                int compute, int algorithm);
};

bool asked() {
  static const char* const word = std::getenv("SELSCAN_CUBLAS");
  return word && std::string_view(word) == "1";
}

[[noreturn]] void refuse(const std::string& reason) {
  constexpr const char* ToDo = "; install it, name its file in SELSCAN_CUBLAS_LIBRARY, or unset SELSCAN_CUBLAS";
  throw Error("NO_DEVICE", "SELSCAN_CUBLAS=1: cuBLAS 11 or newer is expected, got " + reason + ToDo);
}

Functions openLibrary() {
  const char* named = std::getenv("SELSCAN_CUBLAS_LIBRARY");
  std::string reason;
  void* library = nullptr;
  for (const char* file : {"libcublas.so.13", "libcublas.so.12", "libcublas.so.11"}) {
    library = dlopen(named ? named : file, RTLD_LAZY | RTLD_LOCAL);
    if (library) break;
    if (reason.empty() || !named) reason += (reason.empty() ? "" : "; ") + std::string(dlerror());
  }
  if (!library) refuse(reason);
  Functions functions{};
  const auto find = [&]<class F>(F& function, const char* name) {
    function = reinterpret_cast<F>(dlsym(library, name));
    if (!function) refuse(std::string("a library without ") + name);
  };
  find(functions.create, "cublasCreate_v2");
  find(functions.destroy, "cublasDestroy_v2");
  find(functions.getProperty, "cublasGetProperty");
  find(functions.setStream, "cublasSetStream_v2");
  find(functions.setWorkspace, "cublasSetWorkspace_v2");
  find(functions.gemmEx, "cublasGemmEx");
  int major = 0;
  if (functions.getProperty(MajorVersion, &major) != 0 || major < 11) refuse("version " + std::to_string(major));
  return functions;
}

// The library on one device.
class Cublas {
 public:
  explicit Cublas(CudaDevice& device) : functions_(openLibrary()), workspace_(device, WorkspaceBytes) {
    device.activate();
    const auto succeed = [](int status, const char* what) {
      if (status != 0) refuse("status " + std::to_string(status) + " from " + what);
    };
    succeed(functions_.create(&handle_), "cublasCreate");
    try {
      succeed(functions_.setStream(handle_, device.stream()), "cublasSetStream");  // takes the workspace away: before it is set
      succeed(functions_.setWorkspace(handle_, workspace_.data(), WorkspaceBytes), "cublasSetWorkspace");
      test(device);
    } catch (...) {
      functions_.destroy(handle_);
      throw;
    }
  }

  // C (row-major, of f32 or bf16) = A·B, added to C where continued. To a library of column-major matrices it is Cᵀ = Bᵀ·Aᵀ.
  int multiply(Layout layout, const Product& product, void* c, bool half, int64_t stride, bool continued) const {
    const float alpha = 1, beta = continued ? 1 : 0;
    return functions_.gemmEx(handle_, layout == Layout::forward ? Transposed : Plain,
                             layout == Layout::weightGrad ? Transposed : Plain, static_cast<int>(product.n),
                             static_cast<int>(product.m), static_cast<int>(product.k), &alpha, product.b.data, Bfloat16,
                             static_cast<int>(product.b.stride), product.a.data, Bfloat16, static_cast<int>(product.a.stride),
                             &beta, c, half ? Bfloat16 : Float32, static_cast<int>(stride), ComputeFloat32, DefaultAlgorithm);
  }

 private:
  // x·Wᵀ of small whole numbers, whose sums f32 holds exactly. A wrong enumerator would give other numbers or an error.
  void test(CudaDevice& device) const {
    constexpr int M = 16, N = 24, K = 32;
    std::vector<uint16_t> x(M * K), weight(N * K);
    const auto left = [](int m, int k) { return static_cast<float>((m + 3 * k) % 7 - 3); };
    const auto right = [](int n, int k) { return static_cast<float>((5 * n + k) % 5 - 2); };
    for (int i = 0; i < M * K; i++) x[i] = toBf16(left(i / K, i % K));
    for (int i = 0; i < N * K; i++) weight[i] = toBf16(right(i / K, i % K));
    const Buffer a(device, x.size() * 2), b(device, weight.size() * 2), c(device, M * N * sizeof(float));
    device.toDevice(a.data(), reinterpret_cast<const std::byte*>(x.data()), a.sizeBytes());
    device.toDevice(b.data(), reinterpret_cast<const std::byte*>(weight.data()), b.sizeBytes());
    const Planes rows{reinterpret_cast<const bf16*>(a.data()), K, 0}, columns{reinterpret_cast<const bf16*>(b.data()), K, 0};
    const int status = multiply(Layout::forward, {rows, columns, M, N, K, 1}, c.data(), false, N, false);
    if (status != 0) refuse("status " + std::to_string(status) + " from a small product");
    std::vector<float> got(M * N);
    device.toHost(reinterpret_cast<std::byte*>(got.data()), c.data(), c.sizeBytes());
    device.synchronize();
    for (int i = 0; i < M * N; i++) {
      float sum = 0;
      for (int k = 0; k < K; k++) sum += left(i / N, k) * right(i % N, k);
      if (got[i] == sum) continue;
      refuse("a library that computes a small product wrongly, " + std::to_string(got[i]) + " for " + std::to_string(sum));
    }
  }

  Functions functions_;
  Buffer workspace_;
  void* handle_ = nullptr;
};

Cublas& cublasOf(CudaDevice& device) {
  static auto* mutex = new std::mutex;
  static auto* opened = new std::map<CudaDevice*, std::unique_ptr<Cublas>>;  // never destroyed, like the devices
  std::lock_guard lock(*mutex);
  auto& slot = (*opened)[&device];
  if (!slot) slot = std::make_unique<Cublas>(device);
  return *slot;
}

// Large, in bf16, and nothing after it but a sum in f32.
bool suits(const Product& product, const Finish& finish) {
  for (const int64_t size : {product.m, product.n, product.k, product.a.stride, product.b.stride, finish.columns})
    if (size < SizeMin || size > INT32_MAX) return false;
  const bool plain = !finish.bias && !finish.pre && finish.activation == ops::Activation::none;
  const bool added = !finish.residual || (!finish.residual.half && !finish.y.half);
  return product.planes == 1 && plain && added && finish.y;
}

}  // namespace

void openCublasIfAsked(CudaDevice& device) {
  if (asked()) cublasOf(device);
}

bool multiplyByCublas(CudaDevice& device, Layout layout, const Product& product, const Finish& finish) {
  if (!asked() || !suits(product, finish)) return false;
  if (finish.residual && finish.residual.data != finish.y.data)
    device.copy(finish.y.data, finish.residual.data, static_cast<size_t>(product.m * finish.columns) * sizeof(float));
  const int status = cublasOf(device).multiply(layout, product, finish.y.data, finish.y.half, finish.columns,
                                               static_cast<bool>(finish.residual));
  check(status == 0, "NATIVE", device.name(), ": cuBLAS answers status ", status, " to a product of ", product.m, " × ",
        product.n, " × ", product.k, "; unset SELSCAN_CUBLAS to use the package's own products");
  return true;
}

}  // namespace selscan::cuda
