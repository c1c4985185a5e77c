#include "kernels/cuda/similarity_loss.h"

#include "ops/cuda/stream.h"
#include "ops/ops.h"
#include "ops/similarity_loss.h"

namespace ccp {

namespace {

// A cuda::Problem together with what it points to. Labels stay on the device: those of no class match nothing.
class CudaProblem {
 public:
  CudaProblem(const Tensor& anchors, const Tensor& references, const Tensor& labels,
              const std::optional<Tensor>& reference_labels, const std::string& loss,
              const std::vector<double>& parameters, const std::string& normalize, bool proxy_rows, bool exclude_self,
              bool allow_tf32)
      : anchors_(torch::stable::contiguous(anchors)),
        references_(torch::stable::contiguous(references)),
        labels_(torch::stable::contiguous(labels)),
        parameters_(parameters),
        stream(current_stream(anchors)) {
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
    if (entry.uses_positives) list_positives();
  }

  cuda::Problem problem{};

 private:
  template <class T>
  T* hold(int64_t count, ScalarType type) {
    held_.push_back(empty_like_on(anchors_, {count}, type));
    return static_cast<T*>(held_.back().mutable_data_ptr());
  }

  void list_positives() {
    int64_t* starts = hold<int64_t>(problem.rows.count + 1, ScalarType::Long);
    CCP_CUDA_CHECK(cuda::count_positives(problem, starts, stream));
    // With proxies it is known beforehand how long the lists can get; with labelled references the GPU has to be asked,
    // and waited for.
    int64_t length = 0;
    if (!problem.columns.labels)
      length = problem.rows.count * problem.columns.group;
    else if (!problem.rows.labels)
      length = problem.columns.count * problem.rows.group;
    else {
      CCP_CUDA_CHECK(
          cudaMemcpyAsync(&length, starts + problem.rows.count, sizeof(length), cudaMemcpyDeviceToHost, stream));
      CCP_CUDA_CHECK(cudaStreamSynchronize(stream));
    }
    int64_t* columns = hold<int64_t>(length, ScalarType::Long);
    float* distances = hold<float>(length, ScalarType::Float);
    float* farthest = hold<float>(problem.rows.count, ScalarType::Float);
    int32_t* active = hold<int32_t>(length, ScalarType::Int);
    problem.positives = {starts, columns, distances, farthest, active};
    CCP_CUDA_CHECK(cuda::gather_positives(problem, columns, distances, farthest, active, stream));
  }

  Tensor anchors_, references_, labels_;
  std::optional<Tensor> reference_labels_;
  std::vector<double> parameters_;
  std::vector<Tensor> held_;

 public:
  const cudaStream_t stream;
};

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> similarity_loss_cuda(
    const Tensor& anchors, const Tensor& references, const Tensor& labels,
    const std::optional<Tensor>& reference_labels, const OpString& loss, const std::vector<double>& parameters,
    const OpString& normalize, const OpString& reduction, bool proxy_rows, bool exclude_self, bool allow_tf32) {
  const DeviceGuard guard(anchors);
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
  const cuda::Forward out{
      reduce, static_cast<float*>(value.mutable_data_ptr()), static_cast<float*>(row_state.mutable_data_ptr()),
      static_cast<double*>(normalizer.mutable_data_ptr()), static_cast<uint8_t*>(active.mutable_data_ptr())};
  CCP_CUDA_CHECK(cuda::similarity_loss_forward(problem, out, workspace.mutable_data_ptr(), cuda.stream));
  return {value, row_state, normalizer, active};
}

std::tuple<Tensor, Tensor> similarity_loss_backward_cuda(
    const Tensor& grad_loss, const Tensor& anchors, const Tensor& references, const Tensor& labels,
    const std::optional<Tensor>& reference_labels, const Tensor& row_state, const Tensor& normalizer,
    const Tensor& active, const OpString& loss, const std::vector<double>& parameters, const OpString& normalize,
    const OpString& reduction, bool proxy_rows, bool exclude_self, bool allow_tf32, bool need_anchors,
    bool need_references) {
  const DeviceGuard guard(anchors);
  const CudaProblem cuda(anchors, references, labels, reference_labels, loss, parameters, normalize, proxy_rows,
                         exclude_self, allow_tf32);
  const cuda::Problem& problem = cuda.problem;
  const Reduction reduce = find_reduction(reduction);
  CCP_CHECK(grad_loss.scalar_type() == ScalarType::Float &&
                grad_loss.numel() == (reduce == Reduction::kNone ? problem.rows.count : 1),
            "grad_loss: expected one float32 number per loss value");
  const auto gradient = [](const Tensor& of, bool needed) {
    return needed ? torch::stable::new_empty(of, of.sizes()) : empty_like_on(of, {0}, of.scalar_type());
  };
  const Tensor grad_anchors = gradient(anchors, need_anchors), grad_references = gradient(references, need_references);
  void* to_anchors = need_anchors ? grad_anchors.mutable_data_ptr() : nullptr;
  void* to_references = need_references ? grad_references.mutable_data_ptr() : nullptr;
  const Tensor grad = torch::stable::contiguous(grad_loss), states = torch::stable::contiguous(row_state);
  const cuda::Backward out{reduce,
                           static_cast<const float*>(grad.const_data_ptr()),
                           static_cast<const float*>(states.const_data_ptr()),
                           static_cast<const double*>(normalizer.const_data_ptr()),
                           static_cast<const uint8_t*>(active.const_data_ptr()),
                           proxy_rows ? to_references : to_anchors,
                           proxy_rows ? to_anchors : to_references};
  const Tensor workspace =
      empty_like_on(anchors, {int64_t(cuda::backward_workspace_bytes(problem, out))}, ScalarType::Byte);
  CCP_CUDA_CHECK(cuda::similarity_loss_backward(problem, out, workspace.mutable_data_ptr(), cuda.stream));
  return {grad_anchors, grad_references};
}

}  // namespace ccp
