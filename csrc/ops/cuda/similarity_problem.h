// From tensors to the CUDA kernels' work order.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "kernels/cuda/similarity_loss.h"
#include "ops/cuda/check_device.h"
#include "ops/cuda/stream.h"
#include "ops/similarity_loss.h"

namespace ccp {

// Where a row's positives are, for losses that read them.
enum class Positives { kAmongColumns, kToldLater };

// A cuda::Problem together with what it points to. Labels stay on the device: those of no class match nothing.
class CudaProblem {
 public:
  CudaProblem(const Tensor& anchors, const Tensor& references, const Tensor& labels,
              const std::optional<Tensor>& reference_labels, const std::string& loss,
              const std::vector<double>& parameters, const std::string& normalize, bool proxy_rows, bool exclude_self,
              bool allow_tf32, Positives positives = Positives::kAmongColumns)
      : anchors_(torch::stable::contiguous(anchors)),
        references_(torch::stable::contiguous(references)),
        labels_(torch::stable::contiguous(labels)),
        parameters_(parameters),
        stream(current_stream(anchors)) {
    check_device(references, anchors, "references", "anchors");
    check_device(labels, anchors, "labels", "anchors");
    if (reference_labels) check_device(*reference_labels, anchors, "reference_labels", "anchors");
    const PairShapes shapes = check_pairs(anchors, references, labels, reference_labels, exclude_self);
    const LossEntry entry = check_loss(loss, parameters, shapes, proxy_rows);
    const auto side = [](const Tensor& tensor, int64_t count, const char* name) {
      const Dtype dtype = dtype_of(tensor, name);
      CCP_CHECK(dtype != Dtype::kFloat64, name, ": expected float32, bfloat16 or float16 on a GPU, got float64; ",
                "double precision is for gradient checks, on the CPU");
      return cuda::Side{tensor.const_data_ptr(), dtype, count, nullptr, 1, 0};
    };
    cuda::Side samples = side(anchors_, shapes.samples, "anchors");
    cuda::Side others = side(references_, shapes.references, "references");
    samples.labels = static_cast<const int64_t*>(labels_.const_data_ptr());
    if (shapes.proxies_per_class > 0) {
      others.group = shapes.proxies_per_class;
    } else {
      reference_labels_ = torch::stable::contiguous(*reference_labels);
      others.labels = static_cast<const int64_t*>(reference_labels_->const_data_ptr());
    }
    const bool half = samples.dtype != Dtype::kFloat32 && others.dtype != Dtype::kFloat32;
    problem.loss = entry.id;
    problem.parameters = parameters_.data();
    problem.rows = proxy_rows ? others : samples;
    problem.columns = proxy_rows ? samples : others;
    problem.dim = shapes.dim;
    problem.normalize = find_normalize(normalize);
    problem.exclude_diagonal = exclude_self;
    problem.products = half || allow_tf32 ? Products::kOne : Products::kThree;
    problem.multiprocessors = multiprocessors();
    problem.shared_bytes = shared_bytes_of_block();
    problem.hopper = hopper_wanted();
    uses_positives_ = entry.uses_positives;
    if (uses_positives_ && positives == Positives::kAmongColumns) list_positives();
  }

  cuda::Problem problem{};
  bool uses_positives() const { return uses_positives_; }

  // Instead of looking for them among the columns.
  void list_known_positives(const Tensor& distances, const std::optional<Tensor>& counts) {
    const int64_t rows = problem.rows.count, group = problem.columns.group;
    check_device(distances, anchors_, "positives", "anchors");
    check_known_positives(distances, "positives", rows, group, ScalarType::Float);
    if (counts) {
      check_device(*counts, anchors_, "counts", "anchors");
      check_known_positives(*counts, "counts", rows, group, ScalarType::Int);
    }
    held_.push_back(torch::stable::contiguous(distances));
    const float* known = static_cast<const float*>(held_.back().const_data_ptr());
    const int32_t* active = nullptr;
    if (counts) {
      held_.push_back(torch::stable::contiguous(*counts));
      active = static_cast<const int32_t*>(held_.back().const_data_ptr());
    }
    int64_t* starts = hold<int64_t>(rows + 1, ScalarType::Long);
    int64_t* columns = hold<int64_t>(rows * group, ScalarType::Long);
    float* farthest = hold<float>(rows, ScalarType::Float);
    counters_ = empty_like_on(anchors_, {rows, group}, ScalarType::Int);
    int32_t* counters = static_cast<int32_t*>(counters_->mutable_data_ptr());
    CCP_CUDA_CHECK(cuda::list_known_positives(problem, known, active, starts, columns, farthest, counters, stream));
    problem.positives = {starts, columns, known, farthest, counters, active != nullptr};
  }
  // [rows, group] of known positives.
  const Tensor& counters() const { return *counters_; }

  // Of backward.
  void check_saved(const Tensor& grad_loss, const Tensor& row_state, const Tensor& normalizer,
                   const Tensor& active) const {
    check_device(grad_loss, anchors_, "grad_loss", "anchors");
    check_device(row_state, anchors_, "row_state", "anchors");
    check_device(normalizer, anchors_, "normalizer", "anchors");
    check_device(active, anchors_, "active", "anchors");
    check_backward(grad_loss, row_state, normalizer, active, problem.rows.count, problem.columns.count,
                   ScalarType::Float);
    CCP_CHECK(grad_loss.scalar_type() == ScalarType::Float, "grad_loss: expected float32");
  }

 private:
  template <class T>
  T* hold(int64_t count, ScalarType type) {
    held_.push_back(empty_like_on(anchors_, {count}, type));
    return static_cast<T*>(held_.back().mutable_data_ptr());
  }

  void list_positives() {
    if (problem.rows.count == 0 || problem.columns.count == 0) return;
    int64_t* starts = hold<int64_t>(problem.rows.count + 1, ScalarType::Long);
    CCP_CUDA_CHECK(cuda::count_positives(problem, starts, stream));
    int64_t length = cuda::most_positives(problem);
    if (length < 0) {
      CCP_CUDA_CHECK(
          cudaMemcpyAsync(&length, starts + problem.rows.count, sizeof(length), cudaMemcpyDeviceToHost, stream));
      CCP_CUDA_CHECK(cudaStreamSynchronize(stream));
    }
    int64_t* columns = hold<int64_t>(length, ScalarType::Long);
    float* distances = hold<float>(length, ScalarType::Float);
    float* farthest = hold<float>(problem.rows.count, ScalarType::Float);
    int32_t* active = hold<int32_t>(length, ScalarType::Int);
    problem.positives = {starts, columns, distances, farthest, active, false};
    CCP_CUDA_CHECK(cuda::gather_positives(problem, starts, columns, distances, farthest, active, stream));
  }

  Tensor anchors_, references_, labels_;
  std::optional<Tensor> reference_labels_, counters_;
  bool uses_positives_ = false;
  std::vector<double> parameters_;
  std::vector<Tensor> held_;

 public:
  const cudaStream_t stream;
};

}  // namespace ccp
