// What every op needs of torch, and the only place where the stable ABI's types meet ours.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <string>

#include "common/dtype.h"
#include "common/parallel.h"
#include "ops/check.h"

namespace ccp {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// As torch names it, for error messages.
inline std::string dtype_name(ScalarType type) {
  switch (type) {
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
      return "dtype code " + std::to_string(int(type));
  }
}

inline Dtype dtype_of(const Tensor& tensor, const char* name) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return Dtype::kFloat32;
    case ScalarType::Double:
      return Dtype::kFloat64;
    case ScalarType::BFloat16:
      return Dtype::kBFloat16;
    case ScalarType::Half:
      return Dtype::kFloat16;
    default:
      fail(name, ": expected float32, float64, bfloat16 or float16, got ", dtype_name(tensor.scalar_type()));
  }
}

inline ScalarType scalar_type_of(Dtype dtype) {
  switch (dtype) {
    case Dtype::kFloat64:
      return ScalarType::Double;
    case Dtype::kBFloat16:
      return ScalarType::BFloat16;
    case Dtype::kFloat16:
      return ScalarType::Half;
    default:
      return ScalarType::Float;
  }
}

inline Tensor empty_like_on(const Tensor& like, std::initializer_list<int64_t> sizes, ScalarType dtype) {
  return torch::stable::new_empty(like, sizes, dtype);
}

// torch's intra-op thread pool, one index at a time.
inline ParallelFor torch_parallel_for() {
  return {[](int64_t n, void (*body)(int64_t, void*), void* context) {
    torch::stable::parallel_for(0, n, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) body(i, context);
    });
  }};
}

// The pool, or the calling thread alone where waking the others costs more than they would save.
inline ParallelFor parallel_for_work(double operations) {
  if (operations >= 1e6) return torch_parallel_for();
  return {[](int64_t n, void (*body)(int64_t, void*), void* context) {
    for (int64_t i = 0; i < n; ++i) body(i, context);
  }};
}

}  // namespace ccp
