// Losses whose proxies are a part of all there are: csrc/registration.cpp says what each operator is for.
#include "ops/cuda/similarity_problem.h"
#include "ops/ops.h"

namespace ccp {

namespace {

// A problem of some proxies, and the known positives of its rows.
CudaProblem shard_problem(const Tensor& anchors, const Tensor& proxies, const Tensor& labels,
                          const std::optional<Tensor>& positives, const std::optional<Tensor>& counts,
                          const std::string& loss, const std::vector<double>& parameters, const std::string& normalize,
                          bool proxy_rows, bool allow_tf32) {
  CudaProblem cuda(anchors, proxies, labels, std::nullopt, loss, parameters, normalize, proxy_rows, false, allow_tf32,
                   proxy_rows ? Positives::kAmongColumns : Positives::kToldLater);
  CCP_CHECK((cuda.uses_positives() && !proxy_rows) == positives.has_value(),
            "positives: expected with rows of samples and a loss that reads them, and only then");
  if (positives) cuda.list_known_positives(*positives, counts);
  return cuda;
}

}  // namespace

std::tuple<Tensor, Tensor> similarity_shard_states_cuda(const Tensor& anchors, const Tensor& proxies,
                                                        const Tensor& labels, const std::optional<Tensor>& positives,
                                                        const OpString& loss, const std::vector<double>& parameters,
                                                        const OpString& normalize, bool proxy_rows, bool allow_tf32) {
  const DeviceGuard guard(anchors, "anchors");
  const CudaProblem cuda = shard_problem(anchors, proxies, labels, positives, std::nullopt, loss, parameters, normalize,
                                         proxy_rows, allow_tf32);
  const cuda::Problem& problem = cuda.problem;
  const int64_t rows = problem.rows.count;
  const Tensor states = empty_like_on(anchors, {find_loss(loss, parameters).members, rows}, ScalarType::Float);
  const Tensor active = empty_like_on(anchors, {std::max(rows, problem.columns.count)}, ScalarType::Byte);
  const Tensor workspace = empty_like_on(anchors, {int64_t(cuda::forward_workspace_bytes(problem))}, ScalarType::Byte);
  const cuda::Forward out{Reduction::kSum,
                          nullptr,
                          nullptr,
                          nullptr,
                          static_cast<uint8_t*>(active.mutable_data_ptr()),
                          static_cast<float*>(states.mutable_data_ptr()),
                          true};
  CCP_CUDA_CHECK(cuda::similarity_loss_forward(problem, out, workspace.mutable_data_ptr(), cuda.stream));
  return {states, active};
}

std::tuple<Tensor, Tensor> similarity_finish_cuda(const Tensor& states, int64_t columns, const OpString& loss,
                                                  const std::vector<double>& parameters) {
  const DeviceGuard guard(states, "states");
  const LossEntry entry = check_states(states, loss, parameters);
  CCP_CHECK(states.scalar_type() == ScalarType::Float, "states: expected float32 on a GPU");
  const Tensor parts = torch::stable::contiguous(states);
  const Tensor row_state = empty_like_on(states, {kSaved, states.size(2)}, ScalarType::Float);
  const Tensor row_parts = empty_like_on(states, {kRowParts, states.size(2)}, ScalarType::Double);
  const SimilarityFinish job{entry.id,
                             parameters.data(),
                             false,
                             parts.const_data_ptr(),
                             states.size(0),
                             states.size(2),
                             columns,
                             row_state.mutable_data_ptr(),
                             static_cast<double*>(row_parts.mutable_data_ptr())};
  CCP_CUDA_CHECK(cuda::similarity_loss_finish(job, current_stream(states)));
  return {row_state, row_parts};
}

Tensor similarity_shard_counts_cuda(const Tensor& anchors, const Tensor& proxies, const Tensor& labels,
                                    const Tensor& positives, const OpString& loss,
                                    const std::vector<double>& parameters, const OpString& normalize, bool allow_tf32) {
  const DeviceGuard guard(anchors, "anchors");
  const CudaProblem cuda =
      shard_problem(anchors, proxies, labels, positives, std::nullopt, loss, parameters, normalize, false, allow_tf32);
  CCP_CUDA_CHECK(cuda::similarity_loss_count(cuda.problem, cuda.stream));
  return cuda.counters();
}

std::tuple<Tensor, Tensor> similarity_shard_backward_cuda(
    const Tensor& grad_loss, const Tensor& anchors, const Tensor& proxies, const Tensor& labels,
    const std::optional<Tensor>& positives, const std::optional<Tensor>& counts, const Tensor& row_state,
    const Tensor& normalizer, const Tensor& active, const OpString& loss, const std::vector<double>& parameters,
    const OpString& normalize, bool proxy_rows, bool allow_tf32, bool need_anchors, bool need_proxies) {
  const DeviceGuard guard(anchors, "anchors");
  CCP_CHECK(positives.has_value() == counts.has_value(), "counts: expected with positives, and only then");
  const CudaProblem cuda =
      shard_problem(anchors, proxies, labels, positives, counts, loss, parameters, normalize, proxy_rows, allow_tf32);
  const cuda::Problem& problem = cuda.problem;
  cuda.check_saved(grad_loss, row_state, normalizer, active);
  const auto gradient = [](const Tensor& of, bool needed) {
    return needed ? torch::stable::new_empty(of, of.sizes()) : empty_like_on(of, {0}, of.scalar_type());
  };
  const Tensor grad_anchors = gradient(anchors, need_anchors), grad_proxies = gradient(proxies, need_proxies);
  void* to_anchors = need_anchors ? grad_anchors.mutable_data_ptr() : nullptr;
  void* to_proxies = need_proxies ? grad_proxies.mutable_data_ptr() : nullptr;
  const Tensor grad = torch::stable::contiguous(grad_loss), saved = torch::stable::contiguous(row_state);
  const Tensor divisors = torch::stable::contiguous(normalizer), flags = torch::stable::contiguous(active);
  const cuda::Backward out{grad_loss.dim() == 1 ? Reduction::kNone : Reduction::kSum,
                           static_cast<const float*>(grad.const_data_ptr()),
                           static_cast<const float*>(saved.const_data_ptr()),
                           static_cast<const double*>(divisors.const_data_ptr()),
                           static_cast<const uint8_t*>(flags.const_data_ptr()),
                           proxy_rows ? to_proxies : to_anchors,
                           proxy_rows ? to_anchors : to_proxies};
  const Tensor workspace =
      empty_like_on(anchors, {int64_t(cuda::backward_workspace_bytes(problem, out))}, ScalarType::Byte);
  CCP_CUDA_CHECK(cuda::similarity_loss_backward(problem, out, workspace.mutable_data_ptr(), cuda.stream));
  return {grad_anchors, grad_proxies};
}

}  // namespace ccp
