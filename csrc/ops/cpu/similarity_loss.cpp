#include "kernels/cpu/similarity_loss.h"

#include <memory>

#include "ops/cpu/labels.h"
#include "ops/ops.h"
#include "ops/similarity_loss.h"

namespace ccp {

namespace {

// A SimilarityProblem together with what it points to.
class CpuProblem {
 public:
  CpuProblem(const Tensor& anchors, const Tensor& references, const Tensor& labels,
             const std::optional<Tensor>& reference_labels, const std::string& loss,
             const std::vector<double>& parameters, const std::string& normalize, bool proxy_rows, bool exclude_self)
      : shapes_(check_pairs(anchors, references, labels, reference_labels, exclude_self)),
        anchors_(torch::stable::contiguous(anchors)),
        references_(torch::stable::contiguous(references)),
        parameters_(parameters) {
    const LossEntry entry = check_loss(loss, parameters, shapes_, proxy_rows);
    const EmbeddingSide samples{anchors_.const_data_ptr(), dtype_of(anchors, "anchors"), shapes_.samples, nullptr, 1};
    const EmbeddingSide others{references_.const_data_ptr(), dtype_of(references, "references"), shapes_.references,
                               nullptr, 1};
    problem.loss = entry.id;
    problem.parameters = parameters_.data();
    problem.rows = proxy_rows ? others : samples;
    problem.columns = proxy_rows ? samples : others;
    problem.dim = shapes_.dim;
    problem.normalize = find_normalize(normalize);
    problem.exclude_diagonal = exclude_self;
    problem.use_double = samples.dtype == Dtype::kFloat64 || others.dtype == Dtype::kFloat64;
    problem.parallel_for =
        parallel_for_work(double(shapes_.samples) * double(shapes_.references) * double(shapes_.dim));

    const Tensor own = torch::stable::contiguous(labels);
    if (shapes_.proxies_per_class > 0)
      label_proxies(own, proxy_rows, entry.uses_positives);
    else
      label_references(own, torch::stable::contiguous(*reference_labels), proxy_rows, entry.uses_positives);
  }

  SimilarityProblem problem{};
  const PairShapes& shapes() const { return shapes_; }

 private:
  void label_proxies(const Tensor& labels, bool proxy_rows, bool index) {
    const int64_t classes = shapes_.references / shapes_.proxies_per_class;
    samples_ = labels_of_proxied_samples(labels, classes);
    (proxy_rows ? problem.columns : problem.rows).labels = samples_.data();
    (proxy_rows ? problem.rows : problem.columns).group = shapes_.proxies_per_class;
    if (index && proxy_rows)
      index_columns(samples_, classes);
    else
      problem.column_classes = {nullptr, nullptr, nullptr, classes, shapes_.proxies_per_class};
  }

  void label_references(const Tensor& labels, const Tensor& reference_labels, bool proxy_rows, bool index) {
    const bool plain = !index && cast_labels(labels, samples_) && cast_labels(reference_labels, references_labels_);
    int64_t classes = 0;
    if (!plain) {
      NumberedLabels numbered = number_labels(labels, reference_labels);
      samples_ = std::move(numbered.rows);
      references_labels_ = std::move(numbered.columns);
      classes = numbered.classes;
    }
    problem.rows.labels = (proxy_rows ? references_labels_ : samples_).data();
    problem.columns.labels = (proxy_rows ? samples_ : references_labels_).data();
    if (index) index_columns(proxy_rows ? samples_ : references_labels_, classes);
  }

  void index_columns(const std::vector<int32_t>& columns, int64_t classes) {
    index_ = std::make_unique<ClassColumns>(columns, classes);
    problem.column_classes = {index_->starts.data(), index_->members.data(), index_->ordinals.data(), classes,
                              index_->largest};
  }

  PairShapes shapes_;
  Tensor anchors_, references_;
  std::vector<double> parameters_;
  std::vector<int32_t> samples_, references_labels_;
  std::unique_ptr<ClassColumns> index_;
};

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

std::vector<double> from_tensor(const Tensor& tensor) {
  const Tensor contiguous = torch::stable::contiguous(tensor);
  std::vector<double> out(size_t(tensor.numel()));
  if (dtype_of(tensor, "grad_loss") == Dtype::kFloat64)
    std::copy_n(static_cast<const double*>(contiguous.const_data_ptr()), out.size(), out.begin());
  else {
    CCP_CHECK(tensor.scalar_type() == ScalarType::Float, "grad_loss: expected float32 or float64");
    std::copy_n(static_cast<const float*>(contiguous.const_data_ptr()), out.size(), out.begin());
  }
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
  const SimilarityForward out{find_reduction(reduction), values.data(), row_state.mutable_data_ptr(),
                              static_cast<double*>(normalizer.mutable_data_ptr()),
                              static_cast<uint8_t*>(active.mutable_data_ptr())};
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
