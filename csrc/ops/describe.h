// Tensors in words, for error messages.
#pragma once

#include <sstream>
#include <string>

#include "ops/tensor.h"

namespace ccp {

// "[3, 128]"
inline std::string shape_of(const Tensor& tensor) {
  std::ostringstream text;
  text << "[";
  for (int64_t d = 0; d < tensor.dim(); ++d) text << (d ? ", " : "") << tensor.size(d);
  text << "]";
  return text.str();
}

// "float32 of shape [3, 128]"
inline std::string describe(const Tensor& tensor) {
  return dtype_name(tensor.scalar_type()) + " of shape " + shape_of(tensor);
}

}  // namespace ccp
