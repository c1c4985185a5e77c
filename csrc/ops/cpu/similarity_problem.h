// From tensors to the CPU kernels' work order.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "ops/cpu/labels.h"
#include "ops/describe.h"
#include "ops/similarity_loss.h"

namespace ccp {

// A SimilarityProblem together with what it points to.
class CpuProblem {
 public:
  CpuProblem(const Tensor& anchors, const Tensor& references, const Tensor& labels,
             const std::optional<Tensor>& reference_labels, const std::string& loss,
             const std::vector<double>& parameters, const std::string& normalize, bool proxy_rows, bool exclude_self,
             ProxyClasses classes = ProxyClasses::kAll)
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
      label_proxies(own, proxy_rows, entry.uses_positives, classes);
    else
      label_references(own, torch::stable::contiguous(*reference_labels), proxy_rows, entry.uses_positives);
  }

  SimilarityProblem problem{};
  const PairShapes& shapes() const { return shapes_; }

 private:
  void label_proxies(const Tensor& labels, bool proxy_rows, bool index, ProxyClasses known) {
    const int64_t classes = shapes_.references / shapes_.proxies_per_class;
    samples_ = labels_of_proxied_samples(labels, classes, known);
    (proxy_rows ? problem.columns : problem.rows).labels = samples_.data();
    (proxy_rows ? problem.rows : problem.columns).group = shapes_.proxies_per_class;
    if (index && proxy_rows)
      index_columns(samples_, classes + (known == ProxyClasses::kSome));
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

inline std::vector<double> from_tensor(const Tensor& tensor) {
  const Tensor contiguous = torch::stable::contiguous(tensor);
  std::vector<double> out(size_t(tensor.numel()));
  if (dtype_of(tensor, "grad_loss") == Dtype::kFloat64)
    std::copy_n(static_cast<const double*>(contiguous.const_data_ptr()), out.size(), out.begin());
  else {
    CCP_CHECK(tensor.scalar_type() == ScalarType::Float, "grad_loss: expected float32 or float64, got ",
              describe(tensor));
    std::copy_n(static_cast<const float*>(contiguous.const_data_ptr()), out.size(), out.begin());
  }
  return out;
}

}  // namespace ccp
