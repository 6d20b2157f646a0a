// A libcublas for test/cublas.test.ts: the functions that native/cuda/cublas.cu opens, over host memory, which is what the
// emulated device has. Each product is noted on stderr. FAKE_CUBLAS=old, wrong or failing makes it a library that has to be refused.
#include <bit>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string_view>

namespace {

bool is(const char* kind) {
  const char* word = std::getenv("FAKE_CUBLAS");
  return word && std::string_view(word) == kind;
}

float fromBf16(uint16_t bits) { return std::bit_cast<float>(uint32_t{bits} << 16); }

// Element (row, column) of a column-major matrix, or of its transpose.
float element(const void* data, int stride, bool transposed, int row, int column) {
  const int64_t at = transposed ? column + int64_t{row} * stride : row + int64_t{column} * stride;
  return fromBf16(static_cast<const uint16_t*>(data)[at]);
}

}  // namespace

extern "C" {

int cublasCreate_v2(void** handle) {
  static int one;
  *handle = &one;
  return 0;
}
int cublasDestroy_v2(void*) { return 0; }
int cublasGetProperty(int, int* value) {
  *value = is("old") ? 10 : 12;
  return 0;
}
int cublasSetStream_v2(void*, void*) { return 0; }
int cublasSetWorkspace_v2(void*, void* workspace, size_t bytes) { return workspace && bytes > 0 ? 0 : 7; }

int cublasGemmEx(void*, int operationA, int operationB, int m, int n, int k, const void* alpha, const void* a, int typeA,
                 int strideA, const void* b, int typeB, int strideB, const void* beta, void* c, int typeC, int strideC,
                 int compute, int algorithm) {
  constexpr int Float32 = 0, Bfloat16 = 14, ComputeFloat32 = 68;
  if (is("failing")) return 13;
  if (typeA != Bfloat16 || typeB != Bfloat16 || (typeC != Float32 && typeC != Bfloat16) || compute != ComputeFloat32 ||
      algorithm != -1)
    return 7;
  std::fprintf(stderr, "gemm %d %d %d, operations %d %d, beta %g\n", m, n, k, operationA, operationB,
               *static_cast<const float*>(beta));
  for (int column = 0; column < n; column++)
    for (int row = 0; row < m; row++) {
      float sum = is("wrong") ? 1.0f : 0.0f;
      for (int i = 0; i < k; i++)
        sum += element(a, strideA, operationA != 0, row, i) * element(b, strideB, operationB != 0, i, column);
      sum *= *static_cast<const float*>(alpha);
      const int64_t at = row + int64_t{column} * strideC;
      if (*static_cast<const float*>(beta) != 0) sum += *static_cast<const float*>(beta) * static_cast<const float*>(c)[at];
      if (typeC == Float32) static_cast<float*>(c)[at] = sum;
      else
        static_cast<uint16_t*>(c)[at] =
            static_cast<uint16_t>((std::bit_cast<uint32_t>(sum) + 0x7fff + (std::bit_cast<uint32_t>(sum) >> 16 & 1)) >> 16);
    }
  return 0;
}

}  // extern "C"
