#include "kernels/cuda/farthest_points.h"

#include "ops/cuda/check_device.h"
#include "ops/cuda/stream.h"
#include "ops/describe.h"
#include "ops/ops.h"
#include "ops/similarity_loss.h"  // find_normalize

namespace ccp {
namespace {

// What the offsets say is left to the kernels: to read it here would be to wait for the GPU.
void check_ragged(const Tensor& vectors, const Tensor& offsets, const Tensor& points, const char* name,
                  const char* offsets_name) {
  check_device(vectors, points, name, "points");
  check_device(offsets, points, offsets_name, "points");
  CCP_CHECK(vectors.dim() == 2, name, ": expected shape [N, D], got ", shape_of(vectors));
  CCP_CHECK(offsets.scalar_type() == ScalarType::Long && offsets.dim() == 1 && offsets.size(0) >= 1, offsets_name,
            ": expected int64 of shape [S + 1], got ", describe(offsets));
}

cuda::RaggedVectors ragged(const Tensor& vectors, const Tensor& offsets, const char* name) {
  return {vectors.const_data_ptr(), dtype_of(vectors, name), vectors.size(0), offsets.const_data_ptr<int64_t>()};
}

int64_t shared_limit() {
  int device = 0, bytes = 0;
  CCP_CUDA_CHECK(cudaGetDevice(&device));
  CCP_CUDA_CHECK(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  return bytes;
}

}  // namespace

std::tuple<Tensor, Tensor> farthest_points_cuda(const Tensor& points_in, const Tensor& offsets_in,
                                                const std::optional<Tensor>& seeds_in,
                                                const std::optional<Tensor>& seed_offsets_in, int64_t k,
                                                const OpString& normalize, bool pad) {
  CCP_CHECK(k >= 1, "k: expected at least 1, got ", k);
  CCP_CHECK(seeds_in.has_value() == seed_offsets_in.has_value(), "seeds and seed_offsets: expected both or neither");
  const DeviceGuard guard(points_in, "points");
  check_ragged(points_in, offsets_in, points_in, "points", "offsets");
  const Tensor points = torch::stable::contiguous(points_in);
  const Tensor offsets = torch::stable::contiguous(offsets_in);

  cuda::FarthestPointsProblem problem{};
  problem.points = ragged(points, offsets, "points");
  problem.segments = offsets.size(0) - 1;
  problem.largest_segment = points.size(0);
  problem.dim = points.size(1);
  problem.k = k;
  problem.normalize = find_normalize(normalize);
  problem.pad = pad;
  CCP_CHECK(problem.dim <= problem.kMaxDim, "points: expected vectors of at most ", problem.kMaxDim,
            " components, got shape ", shape_of(points));
  const ScalarType computed = problem.points.dtype == Dtype::kFloat64 ? ScalarType::Double : ScalarType::Float;

  Tensor seeds, seed_offsets;
  problem.seeds = {nullptr, problem.points.dtype, 0, nullptr};
  if (seeds_in) {
    check_ragged(*seeds_in, *seed_offsets_in, points, "seeds", "seed_offsets");
    CCP_CHECK(seeds_in->size(1) == problem.dim, "seeds: expected vectors of ", problem.dim, " components, got shape ",
              shape_of(*seeds_in));
    CCP_CHECK(seed_offsets_in->size(0) == offsets.size(0), "seed_offsets: expected shape ", shape_of(offsets),
              ", that of offsets, got ", shape_of(*seed_offsets_in));
    seeds = torch::stable::contiguous(*seeds_in);
    seed_offsets = torch::stable::contiguous(*seed_offsets_in);
    if (dtype_of(seeds, "seeds") != problem.points.dtype) seeds = torch::stable::to(seeds, computed);
    problem.seeds = ragged(seeds, seed_offsets, "seeds");
  }

  Tensor indices = empty_like_on(points, {problem.segments, k}, ScalarType::Long);
  Tensor radii = empty_like_on(points, {problem.segments, k}, computed);
  problem.indices = indices.mutable_data_ptr<int64_t>();
  problem.radii = radii.mutable_data_ptr();
  const cuda::FarthestPointsPlan plan = cuda::plan_farthest_points(problem, shared_limit());
  const auto bytes = int64_t(cuda::farthest_points_workspace_bytes(problem, plan));
  Tensor workspace = empty_like_on(points, {bytes}, ScalarType::Byte);
  CCP_CUDA_CHECK(cuda::farthest_points(problem, plan, workspace.mutable_data_ptr(), current_stream(points)));
  return {indices, radii};
}

}  // namespace ccp
