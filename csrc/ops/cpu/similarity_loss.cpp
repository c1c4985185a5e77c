#include "kernels/cpu/similarity_loss.h"

#include "ops/cpu/similarity_problem.h"
#include "ops/ops.h"

namespace ccp {

namespace {

// double[] on the kernel's side, float32 or float64 on torch's.
Tensor to_tensor(const std::vector<double>& values, const Tensor& like, bool scalar, bool use_double) {
  const Tensor out =
      scalar ? torch::stable::new_empty(like, {}, use_double ? ScalarType::Double : ScalarType::Float)
             : empty_like_on(like, {int64_t(values.size())}, use_double ? ScalarType::Double : ScalarType::Float);
  if (use_double)
    std::copy(values.begin(), values.end(), static_cast<double*>(out.mutable_data_ptr()));
  else
    std::copy(values.begin(), values.end(), static_cast<float*>(out.mutable_data_ptr()));
  return out;
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> similarity_loss_cpu(
    const Tensor& anchors, const Tensor& references, const Tensor& labels,
    const std::optional<Tensor>& reference_labels, const OpString& loss, const std::vector<double>& parameters,
    const OpString& normalize, const OpString& reduction, bool proxy_rows, bool exclude_self, bool /*allow_tf32*/) {
  const CpuProblem cpu(anchors, references, labels, reference_labels, loss, parameters, normalize, proxy_rows,
                       exclude_self);
  const SimilarityProblem& problem = cpu.problem;
  const bool per_row = find_reduction(reduction) == Reduction::kNone;
  const ScalarType type = problem.use_double ? ScalarType::Double : ScalarType::Float;

  std::vector<double> values(per_row ? size_t(problem.rows.count) : 1);
  const Tensor row_state = empty_like_on(anchors, {kSaved, problem.rows.count}, type);
  const Tensor normalizer = empty_like_on(anchors, {2}, ScalarType::Double);
  const Tensor active = empty_like_on(anchors, {std::max(problem.rows.count, problem.columns.count)}, ScalarType::Byte);
  const SimilarityForward out{find_reduction(reduction),
                              values.data(),
                              row_state.mutable_data_ptr(),
                              static_cast<double*>(normalizer.mutable_data_ptr()),
                              static_cast<uint8_t*>(active.mutable_data_ptr()),
                              nullptr,
                              false};
  CCP_CPU_KERNEL(similarity_loss_forward)(problem, out);
  return {to_tensor(values, anchors, !per_row, problem.use_double), row_state, normalizer, active};
}

std::tuple<Tensor, Tensor> similarity_loss_backward_cpu(
    const Tensor& grad_loss, const Tensor& anchors, const Tensor& references, const Tensor& labels,
    const std::optional<Tensor>& reference_labels, const Tensor& row_state, const Tensor& normalizer,
    const Tensor& active, const OpString& loss, const std::vector<double>& parameters, const OpString& normalize,
    const OpString& reduction, bool proxy_rows, bool exclude_self, bool /*allow_tf32*/, bool need_anchors,
    bool need_references) {
  const CpuProblem cpu(anchors, references, labels, reference_labels, loss, parameters, normalize, proxy_rows,
                       exclude_self);
  const SimilarityProblem& problem = cpu.problem;
  const Reduction reduce = find_reduction(reduction);
  const std::vector<double> grad = from_tensor(grad_loss);
  CCP_CHECK(int64_t(grad.size()) == (reduce == Reduction::kNone ? problem.rows.count : 1),
            "grad_loss: expected one number per loss value");
  const auto gradient = [](const Tensor& of, bool needed) {
    return needed ? torch::stable::new_empty(of, of.sizes()) : empty_like_on(of, {0}, of.scalar_type());
  };
  const Tensor grad_anchors = gradient(anchors, need_anchors), grad_references = gradient(references, need_references);
  void* to_anchors = need_anchors ? grad_anchors.mutable_data_ptr() : nullptr;
  void* to_references = need_references ? grad_references.mutable_data_ptr() : nullptr;
  const SimilarityBackward out{reduce,
                               grad.data(),
                               torch::stable::contiguous(row_state).const_data_ptr(),
                               static_cast<const double*>(normalizer.const_data_ptr()),
                               static_cast<const uint8_t*>(active.const_data_ptr()),
                               proxy_rows ? to_references : to_anchors,
                               proxy_rows ? to_anchors : to_references};
  CCP_CPU_KERNEL(similarity_loss_backward)(problem, out);
  return {grad_anchors, grad_references};
}

}  // namespace ccp
