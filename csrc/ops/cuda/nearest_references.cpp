#include "kernels/cuda/nearest_references.h"

#include "ops/cuda/check_device.h"
#include "ops/cuda/stream.h"
#include "ops/nearest_references.h"
#include "ops/ops.h"
#include "ops/similarity_loss.h"  // find_normalize

namespace ccp {
namespace {

cuda::Side side_of(const Tensor& tensor, int64_t count, const char* name) {
  const Dtype dtype = dtype_of(tensor, name);
  CCP_CHECK(dtype != Dtype::kFloat64, name, ": expected float32, bfloat16 or float16 on a GPU, got float64");
  return {tensor.const_data_ptr(), dtype, count, nullptr, 1, 0};
}

}  // namespace

std::tuple<Tensor, Tensor> nearest_references_cuda(const Tensor& anchors_in, const Tensor& references_in, int64_t k,
                                                   const OpString& normalize, bool exclude_self, bool allow_tf32) {
  const NeighborShapes shapes = check_neighbors(anchors_in, references_in, k, exclude_self);
  const DeviceGuard guard(anchors_in, "anchors");
  check_device(references_in, anchors_in, "references", "anchors");
  const Tensor anchors = torch::stable::contiguous(anchors_in);
  const Tensor references = torch::stable::contiguous(references_in);

  cuda::NearestReferencesProblem problem{};
  problem.anchors = side_of(anchors, shapes.anchors, "anchors");
  problem.references = side_of(references, shapes.references, "references");
  problem.dim = shapes.dim;
  problem.k = k;
  problem.normalize = find_normalize(normalize);
  problem.exclude_diagonal = exclude_self;
  const bool half = problem.anchors.dtype != Dtype::kFloat32 && problem.references.dtype != Dtype::kFloat32;
  problem.products = half || allow_tf32 ? Products::kOne : Products::kThree;
  problem.multiprocessors = multiprocessors();

  Tensor indices = empty_like_on(anchors, {shapes.anchors, k}, ScalarType::Long);
  Tensor distances = empty_like_on(anchors, {shapes.anchors, k}, ScalarType::Float);
  problem.indices = indices.mutable_data_ptr<int64_t>();
  problem.distances = distances.mutable_data_ptr<float>();
  const auto bytes = int64_t(cuda::nearest_references_workspace_bytes(problem));
  Tensor workspace = empty_like_on(anchors, {bytes}, ScalarType::Byte);
  CCP_CUDA_CHECK(cuda::nearest_references(problem, workspace.mutable_data_ptr(), current_stream(anchors)));
  return {indices, distances};
}

}  // namespace ccp
