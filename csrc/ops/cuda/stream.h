// What a CUDA operator needs besides its kernel: its device made current, torch's stream there, and errors in words.
#pragma once

#include <cuda_runtime.h>
#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>

#include <cstdlib>
#include <cstring>
#include <string>

#include "ops/ops.h"

namespace ccp {

// Allocations and launches go to the tensor's device until the end of the scope.
class DeviceGuard {
 public:
  DeviceGuard(const Tensor& tensor, const char* name) : guard_(device_of(tensor, name)) {}

 private:
  static int32_t device_of(const Tensor& tensor, const char* name) {
    CCP_CHECK(tensor.is_cuda(), name, ": expected a CUDA tensor like the others, got a CPU tensor");
    return tensor.get_device_index();
  }
  torch::stable::accelerator::DeviceGuard guard_;
};

// torch's current stream on the tensor's device.
//
// The function that tells it is in libtorch_cuda. This library is not linked with that, so that it also loads into CPU
// builds of torch. torch loads it privately, where no weak symbol finds it, only the handle of the loaded library does.
inline cudaStream_t current_stream(const Tensor& tensor) {
  using Getter = AOTITorchError (*)(int32_t device_index, void** stream);
  static const Getter getter = [] {
    void* torch_cuda = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    return reinterpret_cast<Getter>(
        dlsym(torch_cuda ? torch_cuda : RTLD_DEFAULT, "aoti_torch_get_current_cuda_stream"));
  }();
  CCP_CHECK(getter, "expected a CUDA build of torch, got one without aoti_torch_get_current_cuda_stream");
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(getter(tensor.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

// `call` as written: the name of the launcher, then its arguments. The runtime forgets the error: launchers return the
// last one, and the next call would fail of this one. Nobody else has to see it, the runtime is this library's own.
[[noreturn]] inline void fail_cuda(const std::string& call, cudaError_t error) {
  cudaGetLastError();
  std::string hint;
  if (error == cudaErrorNoKernelImageForDevice || error == cudaErrorInvalidDeviceFunction)
    hint = std::string(": ccp_fast was built for the architectures ") + cuda_architectures() +
           ", install it again on this machine or set CCP_FAST_CUDA_ARCHS";
  fail(call.substr(0, call.find('(')), ": CUDA error ", int(error), ", ", cudaGetErrorString(error), hint);
}

}  // namespace ccp

#define CCP_CUDA_CHECK(expression)                                          \
  do {                                                                      \
    const cudaError_t ccp_error = (expression);                             \
    if (ccp_error != cudaSuccess) ::ccp::fail_cuda(#expression, ccp_error); \
  } while (false)

namespace ccp {

// Of the current device.
inline int device_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  CCP_CUDA_CHECK(cudaGetDevice(&device));
  CCP_CUDA_CHECK(cudaDeviceGetAttribute(&value, attribute, device));
  return value;
}
inline int multiprocessors() { return device_attribute(cudaDevAttrMultiProcessorCount); }
// Whether the user wants the kernels for Hopper, which are off until they have been measured, and this is one.
inline bool hopper_wanted() {
  const char* wanted = std::getenv("CCP_FAST_HOPPER");
  return wanted && std::strcmp(wanted, "1") == 0 && device_attribute(cudaDevAttrComputeCapabilityMajor) == 9 &&
         device_attribute(cudaDevAttrComputeCapabilityMinor) == 0;
}
inline size_t shared_bytes_of_block() { return size_t(device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin)); }

}  // namespace ccp
