// A tensor that is elsewhere would fault on the GPU: one sentence before any pointer is taken.
#pragma once

#include <string>

#include "ops/tensor.h"

namespace ccp {

inline void check_device(const Tensor& tensor, const Tensor& like, const char* name, const char* like_name) {
  CCP_CHECK(tensor.is_cuda() && tensor.get_device_index() == like.get_device_index(), name,
            ": expected a tensor on CUDA device ", like.get_device_index(), " like ", like_name, ", got one on ",
            tensor.is_cuda() ? "CUDA device " + std::to_string(tensor.get_device_index()) : "another kind of device");
}

}  // namespace ccp
