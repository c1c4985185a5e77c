#include "ops/projection_grad.h"

#include <algorithm>
#include <string>

#include "ops/describe.h"

namespace ccp {
namespace {

using torch::stable::Device;

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

std::string name_of(const Device& device) {
  if (device.is_cpu()) return "cpu";
  if (device.is_cuda()) return "cuda:" + std::to_string(device.index());
  return "device type " + std::to_string(int(device.type()));
}

void check_like(const Tensor& param, const Tensor& other, const char* list, size_t i) {
  CCP_CHECK(same_shape(param, other), list, "[", i, "]: expected shape ", shape_of(param), " like params[", i,
            "], got ", shape_of(other));
}

Dtype checked_dtype(const Tensor& tensor, const Device& device, const char* list, size_t i) {
  CCP_CHECK(tensor.layout() == torch::headeronly::Layout::Strided, list, "[", i,
            "]: expected a dense tensor, got a sparse one");
  CCP_CHECK(tensor.device() == device, list, "[", i, "]: expected on ", name_of(device), " like params[0], got on ",
            name_of(tensor.device()));
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

ProjectionLists check_projection(const std::vector<Tensor>& grads, const std::vector<Tensor>& params,
                                 const std::vector<Tensor>& previous) {
  CCP_CHECK(!params.empty() && params.size() == previous.size() && grads.size() <= params.size(),
            "grads, params, previous: expected n, m and m tensors with n <= m and m > 0, got ", grads.size(), ", ",
            params.size(), " and ", previous.size());
  const Device device = params[0].device();
  ProjectionLists lists;
  lists.tensors.reserve(params.size());
  lists.penalty_dtype = ScalarType::Float;
  for (size_t i = 0; i < params.size(); ++i) {
    Tensor param = params[i], before = previous[i];
    ProjectionTensor t{};
    t.param_dtype = checked_dtype(param, device, "params", i);
    t.previous_dtype = checked_dtype(before, device, "previous", i);
    check_like(param, before, "previous", i);
    bool in_place = same_strides(param, before) && fills_memory(param);
    Tensor grad;
    if (i < grads.size()) {
      grad = grads[i];
      t.grad_dtype = checked_dtype(grad, device, "grads", i);
      check_like(param, grad, "grads", i);
      for (int64_t d = 0; d < grad.dim(); ++d)
        CCP_CHECK(grad.size(d) <= 1 || grad.stride(d) != 0, "grads[", i,
                  "]: expected elements of their own, got an expanded tensor; clone it first");
      in_place = in_place && same_strides(param, grad);
    }
    if (!in_place) {
      lists.copies.push_back(param = torch::stable::contiguous(param));
      lists.copies.push_back(before = torch::stable::contiguous(before));
      if (i < grads.size() && !grad.is_contiguous()) {
        grad = torch::stable::contiguous(grad);
        lists.written_back.emplace_back(grads[i], grad);
      }
    }
    if (t.param_dtype == Dtype::kFloat64) lists.penalty_dtype = ScalarType::Double;
    t.grad = i < grads.size() ? grad.mutable_data_ptr() : nullptr;
    t.param = param.const_data_ptr();
    t.previous = before.const_data_ptr();
    t.numel = param.numel();
    lists.tensors.push_back(t);
  }
  return lists;
}

void write_back(ProjectionLists& lists) {
  for (auto& [original, copy] : lists.written_back) torch::stable::copy_(original, copy);
}

}  // namespace ccp
