#include "kernels/cuda/centre_spread.h"

#include "ops/centre_spread.h"
#include "ops/cuda/check_device.h"
#include "ops/cuda/stream.h"
#include "ops/ops.h"

namespace ccp {
namespace {

cuda::CentreSpread problem_of(const Tensor& contiguous) {
  const Dtype dtype = dtype_of(contiguous, "proxies");
  CCP_CHECK(dtype != Dtype::kFloat64, "proxies: expected float32, bfloat16 or float16 on a GPU, got float64; double ",
            "precision is for gradient checks, on the CPU");
  return {contiguous.const_data_ptr(), dtype, contiguous.size(0), contiguous.size(1), contiguous.size(2)};
}

}  // namespace

Tensor centre_spread_cuda(const Tensor& proxies) {
  const DeviceGuard guard(proxies, "proxies");
  check_centres(proxies);
  const Tensor centres = torch::stable::contiguous(proxies);
  const cuda::CentreSpread problem = problem_of(centres);
  Tensor scratch = empty_like_on(proxies, {cuda::centre_spread_blocks(problem)}, ScalarType::Double);
  Tensor value = torch::stable::new_empty(proxies, {}, ScalarType::Float);
  CCP_CUDA_CHECK(cuda::centre_spread(problem, scratch.mutable_data_ptr<double>(), value.mutable_data_ptr<float>(),
                                     current_stream(proxies)));
  return value;
}

Tensor centre_spread_backward_cuda(const Tensor& grad, const Tensor& proxies) {
  const DeviceGuard guard(proxies, "proxies");
  check_centres(proxies);
  check_spread_gradient(grad, proxies);
  check_device(grad, proxies, "grad", "proxies");
  const Tensor centres = torch::stable::contiguous(proxies);
  Tensor gradient = torch::stable::new_empty(proxies, proxies.sizes());
  CCP_CUDA_CHECK(cuda::centre_spread_backward(problem_of(centres), grad.const_data_ptr<float>(),
                                              gradient.mutable_data_ptr(), current_stream(proxies)));
  return gradient;
}

}  // namespace ccp
