// cuBLAS as an option for large bf16 products, opened at run time where SELSCAN_CUBLAS=1 asks for it; nothing needs it.
//
// It chooses its algorithm by the whole shape, so a row's bits depend on the number of rows: the package's promise of the same
// bits for any number of rows does not hold with it. Two runs of one shape on one GPU still give the same bits.
//
//   SELSCAN_CUBLAS=1             products in precision bf16 whose m, n and k are all 256 or more go to cuBLAS, unless a bias, an
//                                activation or `pre` follows
//   SELSCAN_CUBLAS_LIBRARY=PATH  the file to open; by default libcublas.so.13, .12 or .11, whichever is found first
#pragma once
#include "cuda/gemm.cuh"

namespace selscan::cuda {

// Throws NO_DEVICE with what is missing where cuBLAS is asked for and cannot be had. Opening allocates and waits: for .limit.
void openCublasIfAsked(CudaDevice& device);

// As .limit: the limit of an op of products.
template <std::string (*limit)(const Call&)>
std::string withCublas(const Call& call) {
  openCublasIfAsked(deviceOf(call));
  return limit(call);
}

// Whether the product was given to cuBLAS; false where it is our own kernels' work.
bool multiplyByCublas(CudaDevice& device, Layout layout, const Product& product, const Finish& finish);

}  // namespace selscan::cuda
