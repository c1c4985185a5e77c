// What the unit that copies tensors is told of a matrix (common/tensor_copy.h).
#pragma once

#include <cstdint>

#include "common/tensor_copy.h"

namespace ccp {
namespace cuda {

// Of [rows, columns] numbers of 16 bits on a 16-byte boundary, columns a multiple of 8, copied in boxes of `box_rows`.
// cudaErrorNotSupported where the driver knows nothing of it.
cudaError_t make_tensor_map(const void* data, int64_t rows, int64_t columns, int box_rows, TensorMap* map);

}  // namespace cuda
}  // namespace ccp
