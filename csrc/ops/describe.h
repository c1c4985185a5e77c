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
  const auto dtype = [&]() -> std::string {
    switch (tensor.scalar_type()) {
      case ScalarType::Float:
        return "float32";
      case ScalarType::Double:
        return "float64";
      case ScalarType::BFloat16:
        return "bfloat16";
      case ScalarType::Half:
        return "float16";
      case ScalarType::Long:
        return "int64";
      case ScalarType::Int:
        return "int32";
      case ScalarType::Byte:
        return "uint8";
      default:
        return "dtype code " + std::to_string(int(tensor.scalar_type()));
    }
  };
  return dtype() + " of shape " + shape_of(tensor);
}

}  // namespace ccp
