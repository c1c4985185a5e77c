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

}  // namespace ccp
