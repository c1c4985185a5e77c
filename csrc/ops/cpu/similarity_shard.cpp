// Losses whose proxies are a part of all there are: csrc/registration.cpp says what each operator is for.
#include "kernels/cpu/similarity_loss.h"
#include "ops/cpu/similarity_problem.h"
#include "ops/ops.h"

namespace ccp {

namespace {

ScalarType number_type(const SimilarityProblem& problem) {
  return problem.use_double ? ScalarType::Double : ScalarType::Float;
}

// A problem of some proxies, and the known positives of its rows.
class ShardProblem {
 public:
  ShardProblem(const Tensor& anchors, const Tensor& proxies, const Tensor& labels,
               const std::optional<Tensor>& positives, const std::string& loss, const std::vector<double>& parameters,
               const std::string& normalize, bool proxy_rows)
      : cpu_(anchors, proxies, labels, std::nullopt, loss, parameters, normalize, proxy_rows, false,
             ProxyClasses::kSome) {
    const bool wanted = find_loss(loss, parameters).uses_positives && !proxy_rows;
    CCP_CHECK(wanted == positives.has_value(), "positives: expected with rows of samples and a loss that reads them, ",
              "and only then");
    if (!wanted) return;
    SimilarityProblem& problem = cpu_.problem;
    check_known_positives(*positives, "positives", problem.rows.count, proxies.size(1), number_type(problem));
    distances_ = torch::stable::contiguous(*positives);
    problem.known_positives = {proxies.size(1), distances_->const_data_ptr(), nullptr};
  }
  void set_counts(const Tensor& counts) {
    SimilarityProblem& problem = cpu_.problem;
    check_known_positives(counts, "counts", problem.rows.count, problem.known_positives.count, number_type(problem));
    counts_ = torch::stable::contiguous(counts);
    problem.known_positives.active = counts_->const_data_ptr();
  }
  const SimilarityProblem& problem() const { return cpu_.problem; }

 private:
  CpuProblem cpu_;
  std::optional<Tensor> distances_, counts_;
};

}  // namespace

std::tuple<Tensor, Tensor> similarity_shard_states_cpu(const Tensor& anchors, const Tensor& proxies,
                                                       const Tensor& labels, const std::optional<Tensor>& positives,
                                                       const OpString& loss, const std::vector<double>& parameters,
                                                       const OpString& normalize, bool proxy_rows,
                                                       bool /*allow_tf32*/) {
  const ShardProblem shard(anchors, proxies, labels, positives, loss, parameters, normalize, proxy_rows);
  const SimilarityProblem& problem = shard.problem();
  const Tensor states =
      empty_like_on(anchors, {find_loss(loss, parameters).members, problem.rows.count}, number_type(problem));
  const Tensor active = empty_like_on(anchors, {std::max(problem.rows.count, problem.columns.count)}, ScalarType::Byte);
  const SimilarityForward out{
      Reduction::kSum,           nullptr, nullptr, nullptr, static_cast<uint8_t*>(active.mutable_data_ptr()),
      states.mutable_data_ptr(), true};
  CCP_CPU_KERNEL(similarity_loss_forward)(problem, out);
  return {states, active};
}

std::tuple<Tensor, Tensor> similarity_finish_cpu(const Tensor& states, int64_t columns, const OpString& loss,
                                                 const std::vector<double>& parameters) {
  const LossEntry entry = check_states(states, loss, parameters);
  const Tensor parts = torch::stable::contiguous(states);
  const Tensor row_state = empty_like_on(states, {kSaved, states.size(2)}, states.scalar_type());
  const Tensor row_parts = empty_like_on(states, {kRowParts, states.size(2)}, ScalarType::Double);
  CCP_CPU_KERNEL(similarity_loss_finish)
  ({entry.id, parameters.data(), states.scalar_type() == ScalarType::Double, parts.const_data_ptr(), states.size(0),
    states.size(2), columns, row_state.mutable_data_ptr(), static_cast<double*>(row_parts.mutable_data_ptr())});
  return {row_state, row_parts};
}

Tensor similarity_shard_counts_cpu(const Tensor& anchors, const Tensor& proxies, const Tensor& labels,
                                   const Tensor& positives, const OpString& loss, const std::vector<double>& parameters,
                                   const OpString& normalize, bool /*allow_tf32*/) {
  const ShardProblem shard(anchors, proxies, labels, positives, loss, parameters, normalize, false);
  const Tensor counts = torch::stable::new_empty(positives, positives.sizes());
  CCP_CPU_KERNEL(similarity_loss_count)(shard.problem(), counts.mutable_data_ptr());
  return counts;
}

std::tuple<Tensor, Tensor> similarity_shard_backward_cpu(
    const Tensor& grad_loss, const Tensor& anchors, const Tensor& proxies, const Tensor& labels,
    const std::optional<Tensor>& positives, const std::optional<Tensor>& counts, const Tensor& row_state,
    const Tensor& normalizer, const Tensor& active, const OpString& loss, const std::vector<double>& parameters,
    const OpString& normalize, bool proxy_rows, bool /*allow_tf32*/, bool need_anchors, bool need_proxies) {
  ShardProblem shard(anchors, proxies, labels, positives, loss, parameters, normalize, proxy_rows);
  CCP_CHECK(positives.has_value() == counts.has_value(), "counts: expected with positives, and only then");
  if (counts) shard.set_counts(*counts);
  const SimilarityProblem& problem = shard.problem();
  check_backward(grad_loss, row_state, normalizer, active, problem.rows.count, problem.columns.count,
                 number_type(problem));
  const bool per_row = grad_loss.dim() == 1;
  const std::vector<double> grad = from_tensor(grad_loss);
  const auto gradient = [](const Tensor& of, bool needed) {
    return needed ? torch::stable::new_empty(of, of.sizes()) : empty_like_on(of, {0}, of.scalar_type());
  };
  const Tensor grad_anchors = gradient(anchors, need_anchors), grad_proxies = gradient(proxies, need_proxies);
  void* to_anchors = need_anchors ? grad_anchors.mutable_data_ptr() : nullptr;
  void* to_proxies = need_proxies ? grad_proxies.mutable_data_ptr() : nullptr;
  const Tensor saved = torch::stable::contiguous(row_state);
  const SimilarityBackward out{per_row ? Reduction::kNone : Reduction::kSum,
                               grad.data(),
                               saved.const_data_ptr(),
                               static_cast<const double*>(normalizer.const_data_ptr()),
                               static_cast<const uint8_t*>(active.const_data_ptr()),
                               proxy_rows ? to_proxies : to_anchors,
                               proxy_rows ? to_anchors : to_proxies};
  CCP_CPU_KERNEL(similarity_loss_backward)(problem, out);
  return {grad_anchors, grad_proxies};
}

}  // namespace ccp
