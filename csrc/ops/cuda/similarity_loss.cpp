#include "ops/cuda/similarity_problem.h"
#include "ops/ops.h"

namespace ccp {

std::tuple<Tensor, Tensor, Tensor, Tensor> similarity_loss_cuda(
    const Tensor& anchors, const Tensor& references, const Tensor& labels,
    const std::optional<Tensor>& reference_labels, const OpString& loss, const std::vector<double>& parameters,
    const OpString& normalize, const OpString& reduction, bool proxy_rows, bool exclude_self, bool allow_tf32) {
  const DeviceGuard guard(anchors, "anchors");
  const CudaProblem cuda(anchors, references, labels, reference_labels, loss, parameters, normalize, proxy_rows,
                         exclude_self, allow_tf32);
  const cuda::Problem& problem = cuda.problem;
  const int64_t rows = problem.rows.count;
  const Reduction reduce = find_reduction(reduction);
  const Tensor value = reduce == Reduction::kNone ? empty_like_on(anchors, {rows}, ScalarType::Float)
                                                  : torch::stable::new_empty(anchors, {}, ScalarType::Float);
  const Tensor row_state = empty_like_on(anchors, {kSaved, rows}, ScalarType::Float);
  const Tensor normalizer = empty_like_on(anchors, {2}, ScalarType::Double);
  const Tensor active = empty_like_on(anchors, {std::max(rows, problem.columns.count)}, ScalarType::Byte);
  const Tensor workspace = empty_like_on(anchors, {int64_t(cuda::forward_workspace_bytes(problem))}, ScalarType::Byte);
  const cuda::Forward out{reduce,
                          static_cast<float*>(value.mutable_data_ptr()),
                          static_cast<float*>(row_state.mutable_data_ptr()),
                          static_cast<double*>(normalizer.mutable_data_ptr()),
                          static_cast<uint8_t*>(active.mutable_data_ptr()),
                          nullptr,
                          false};
  CCP_CUDA_CHECK(cuda::similarity_loss_forward(problem, out, workspace.mutable_data_ptr(), cuda.stream));
  return {value, row_state, normalizer, active};
}

std::tuple<Tensor, Tensor> similarity_loss_backward_cuda(
    const Tensor& grad_loss, const Tensor& anchors, const Tensor& references, const Tensor& labels,
    const std::optional<Tensor>& reference_labels, const Tensor& row_state, const Tensor& normalizer,
    const Tensor& active, const OpString& loss, const std::vector<double>& parameters, const OpString& normalize,
    const OpString& reduction, bool proxy_rows, bool exclude_self, bool allow_tf32, bool need_anchors,
    bool need_references) {
  const DeviceGuard guard(anchors, "anchors");
  const CudaProblem cuda(anchors, references, labels, reference_labels, loss, parameters, normalize, proxy_rows,
                         exclude_self, allow_tf32);
  const cuda::Problem& problem = cuda.problem;
  const Reduction reduce = find_reduction(reduction);
  cuda.check_saved(grad_loss, row_state, normalizer, active);
  CCP_CHECK(grad_loss.numel() == (reduce == Reduction::kNone ? problem.rows.count : 1),
            "grad_loss: expected one number per loss value");
  const auto gradient = [](const Tensor& of, bool needed) {
    return needed ? torch::stable::new_empty(of, of.sizes()) : empty_like_on(of, {0}, of.scalar_type());
  };
  const Tensor grad_anchors = gradient(anchors, need_anchors), grad_references = gradient(references, need_references);
  void* to_anchors = need_anchors ? grad_anchors.mutable_data_ptr() : nullptr;
  void* to_references = need_references ? grad_references.mutable_data_ptr() : nullptr;
  const Tensor grad = torch::stable::contiguous(grad_loss), states = torch::stable::contiguous(row_state);
  const Tensor divisors = torch::stable::contiguous(normalizer), flags = torch::stable::contiguous(active);
  const cuda::Backward out{reduce,
                           static_cast<const float*>(grad.const_data_ptr()),
                           static_cast<const float*>(states.const_data_ptr()),
                           static_cast<const double*>(divisors.const_data_ptr()),
                           static_cast<const uint8_t*>(flags.const_data_ptr()),
                           proxy_rows ? to_references : to_anchors,
                           proxy_rows ? to_anchors : to_references};
  const Tensor workspace =
      empty_like_on(anchors, {int64_t(cuda::backward_workspace_bytes(problem, out))}, ScalarType::Byte);
  CCP_CUDA_CHECK(cuda::similarity_loss_backward(problem, out, workspace.mutable_data_ptr(), cuda.stream));
  return {grad_anchors, grad_references};
}

}  // namespace ccp
