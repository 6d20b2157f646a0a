// A tensor of the cpu with its memory, zeros to begin with.
#pragma once
#include <algorithm>
#include <initializer_list>

#include "core/device.h"

namespace selscan::bench {

struct Values {
  Buffer buffer;
  Tensor tensor;

  Values(Dtype dtype, std::initializer_list<int64_t> sizes) {
    tensor.dtype = dtype;
    tensor.given = true;
    for (const int64_t size : sizes) tensor.shape.dims[tensor.shape.rank++] = size;
    buffer = Buffer(device("cpu"), tensor.sizeBytes());
    tensor.data = buffer.data();
    std::fill_n(tensor.data, tensor.sizeBytes(), std::byte{0});
  }
};

}  // namespace selscan::bench
