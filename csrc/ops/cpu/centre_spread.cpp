#include "kernels/cpu/centre_spread.h"

#include "ops/centre_spread.h"
#include "ops/ops.h"

namespace ccp {
namespace {

CentreSpreadProblem problem_of(const Tensor& contiguous) {
  const int64_t classes = contiguous.size(0), centres = contiguous.size(1), dim = contiguous.size(2);
  return {{contiguous.const_data_ptr(), dtype_of(contiguous, "proxies"), classes * centres, nullptr, centres},
          dim,
          parallel_for_work(double(classes * centres) * double(centres * dim))};
}

}  // namespace

Tensor centre_spread_cpu(const Tensor& proxies) {
  check_centres(proxies);
  const Tensor centres = torch::stable::contiguous(proxies);
  const double value = CCP_CPU_KERNEL(centre_spread)(problem_of(centres));
  const bool wide = centres.scalar_type() == ScalarType::Double;
  Tensor out = torch::stable::new_empty(proxies, {}, wide ? ScalarType::Double : ScalarType::Float);
  if (wide)
    *out.mutable_data_ptr<double>() = value;
  else
    *out.mutable_data_ptr<float>() = float(value);
  return out;
}

Tensor centre_spread_backward_cpu(const Tensor& grad, const Tensor& proxies) {
  check_centres(proxies);
  check_spread_gradient(grad, proxies);
  const Tensor centres = torch::stable::contiguous(proxies);
  Tensor gradient = torch::stable::new_empty(proxies, proxies.sizes());
  const double weight =
      grad.scalar_type() == ScalarType::Double ? *grad.const_data_ptr<double>() : double(*grad.const_data_ptr<float>());
  CCP_CPU_KERNEL(centre_spread_backward)(problem_of(centres), weight, gradient.mutable_data_ptr());
  return gradient;
}

}  // namespace ccp
