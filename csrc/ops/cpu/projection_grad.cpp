#include "kernels/cpu/projection_grad.h"

#include <algorithm>
#include <utility>

#include "ops/describe.h"
#include "ops/ops.h"

namespace ccp {
namespace {

bool same_shape(const Tensor& a, const Tensor& b) {
  if (a.dim() != b.dim()) return false;
  for (int64_t d = 0; d < a.dim(); ++d)
    if (a.size(d) != b.size(d)) return false;
  return true;
}

// Strides count only where a dimension has more than one element.
bool same_strides(const Tensor& a, const Tensor& b) {
  for (int64_t d = 0; d < a.dim(); ++d)
    if (a.size(d) > 1 && a.stride(d) != b.stride(d)) return false;
  return true;
}

// Do the elements fill a block of memory without gaps or overlap, in whatever order of dimensions (channels_last)?
bool fills_memory(const Tensor& a) {
  if (a.is_contiguous() || a.numel() == 0) return true;
  std::vector<std::pair<int64_t, int64_t>> dimensions;  // stride, size
  for (int64_t d = 0; d < a.dim(); ++d)
    if (a.size(d) > 1) dimensions.emplace_back(a.stride(d), a.size(d));
  std::sort(dimensions.begin(), dimensions.end());
  int64_t expected = 1;
  for (const auto& [stride, size] : dimensions) {
    if (stride != expected) return false;
    expected *= size;
  }
  return true;
}

void check_like(const Tensor& param, const Tensor& other, const char* name, size_t i) {
  CCP_CHECK(same_shape(param, other), name, "[", i, "]: expected shape ", shape_of(param), " like params[", i,
            "], got ", shape_of(other));
  CCP_CHECK(other.is_cpu(), name, "[", i, "]: expected a CPU tensor like params[", i, "]");
}

Dtype checked_dtype(const Tensor& tensor, const char* list, size_t i) {
  CCP_CHECK(tensor.layout() == torch::headeronly::Layout::Strided, list, "[", i,
            "]: expected a dense tensor, got a sparse one");
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
    case ScalarType::Double:
    case ScalarType::BFloat16:
    case ScalarType::Half:
      return dtype_of(tensor, list);
    default:  // the name is made only now: there may be thousands of tensors
      return dtype_of(tensor, (std::string(list) + "[" + std::to_string(i) + "]").c_str());
  }
}

}  // namespace

Tensor projection_grad_cpu_(const std::vector<Tensor>& grads, const std::vector<Tensor>& params,
                            const std::vector<Tensor>& previous, double lam) {
  CCP_CHECK(!params.empty() && params.size() == previous.size() && grads.size() <= params.size(),
            "grads, params, previous: expected n, m and m tensors with n <= m and m > 0, got ", grads.size(), ", ",
            params.size(), " and ", previous.size());
  std::vector<ProjectionTensor> tensors;
  tensors.reserve(params.size());
  std::vector<Tensor> copies;                           // kept alive until the kernel has run
  std::vector<std::pair<size_t, Tensor>> written_back;  // gradients that had to be copied
  bool wide = false;
  for (size_t i = 0; i < params.size(); ++i) {
    Tensor param = params[i], before = previous[i];
    ProjectionTensor t{};
    t.param_dtype = checked_dtype(param, "params", i);
    t.previous_dtype = checked_dtype(before, "previous", i);
    CCP_CHECK(param.is_cpu(), "params[", i, "]: expected a CPU tensor");
    check_like(param, before, "previous", i);
    bool in_place = same_strides(param, before) && fills_memory(param);
    Tensor grad;
    if (i < grads.size()) {
      grad = grads[i];
      t.grad_dtype = checked_dtype(grad, "grads", i);
      check_like(param, grad, "grads", i);
      for (int64_t d = 0; d < grad.dim(); ++d)
        CCP_CHECK(grad.size(d) <= 1 || grad.stride(d) != 0, "grads[", i,
                  "]: expected elements of their own, got an expanded tensor; clone it first");
      in_place = in_place && same_strides(param, grad);
    }
    if (!in_place) {
      copies.push_back(param = torch::stable::contiguous(param));
      copies.push_back(before = torch::stable::contiguous(before));
      if (i < grads.size() && !grad.is_contiguous())
        written_back.emplace_back(i, grad = torch::stable::contiguous(grad));
    }
    wide = wide || t.param_dtype == Dtype::kFloat64;
    t.grad = i < grads.size() ? grad.mutable_data_ptr() : nullptr;
    t.param = param.const_data_ptr();
    t.previous = before.const_data_ptr();
    t.numel = param.numel();
    tensors.push_back(t);
  }
  const double squares =
      CCP_CPU_KERNEL(projection_grad)({tensors.data(), int64_t(tensors.size()), lam, torch_parallel_for()});
  for (const auto& [i, grad] : written_back) {
    Tensor original = grads[i];
    torch::stable::copy_(original, grad);
  }
  Tensor penalty = empty_like_on(params[0], {}, wide ? ScalarType::Double : ScalarType::Float);
  if (wide)
    *penalty.mutable_data_ptr<double>() = 0.5 * lam * squares;
  else
    *penalty.mutable_data_ptr<float>() = float(0.5 * lam * squares);
  return penalty;
}

}  // namespace ccp
