#include "kernels/cpu/nearest_references.h"

#include "ops/nearest_references.h"
#include "ops/ops.h"
#include "ops/similarity_loss.h"  // find_normalize

namespace ccp {

std::tuple<Tensor, Tensor> nearest_references_cpu(const Tensor& anchors_in, const Tensor& references_in, int64_t k,
                                                  const OpString& normalize, bool exclude_self, bool /*allow_tf32*/) {
  const NeighborShapes shapes = check_neighbors(anchors_in, references_in, k, exclude_self);
  CCP_CHECK(anchors_in.is_cpu() && references_in.is_cpu(), "anchors, references: expected both on the CPU");
  const Tensor anchors = torch::stable::contiguous(anchors_in);
  const Tensor references = torch::stable::contiguous(references_in);

  NearestReferencesProblem problem{};
  problem.anchors = {anchors.const_data_ptr(), dtype_of(anchors, "anchors"), shapes.anchors, nullptr, 1};
  problem.references = {references.const_data_ptr(), dtype_of(references, "references"), shapes.references, nullptr, 1};
  problem.dim = shapes.dim;
  problem.k = k;
  problem.normalize = find_normalize(normalize);
  problem.exclude_diagonal = exclude_self;
  problem.use_double = problem.anchors.dtype == Dtype::kFloat64 || problem.references.dtype == Dtype::kFloat64;
  problem.parallel_for = parallel_for_work(double(shapes.anchors) * double(shapes.references) * double(shapes.dim));

  Tensor indices = empty_like_on(anchors, {shapes.anchors, k}, ScalarType::Long);
  Tensor distances =
      empty_like_on(anchors, {shapes.anchors, k}, problem.use_double ? ScalarType::Double : ScalarType::Float);
  problem.indices = indices.mutable_data_ptr<int64_t>();
  problem.distances = distances.mutable_data_ptr();

  const NearestReferencesStatus status = CCP_CPU_KERNEL(nearest_references)(problem);
  const char* expected = ": expected numbers whose squares add up to no overflow, got NaN or too large ones in row ";
  CCP_CHECK(status.bad_anchor < 0, "anchors", expected, status.bad_anchor);
  CCP_CHECK(status.bad_reference < 0, "references", expected, status.bad_reference);
  return {indices, distances};
}

}  // namespace ccp
