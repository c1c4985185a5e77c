#include "kernels/cpu/farthest_points.h"

#include "ops/describe.h"
#include "ops/ops.h"
#include "ops/similarity_loss.h"  // find_normalize

namespace ccp {
namespace {

void check_vectors(const Tensor& vectors, const char* name) {
  CCP_CHECK(vectors.dim() == 2, name, ": expected shape [N, D], got ", shape_of(vectors));
  CCP_CHECK(vectors.is_cpu(), name, ": expected a CPU tensor like points");
}

// offsets [segments + 1] must cut `rows` rows into segments.
void check_offsets(const Tensor& offsets, int64_t segments, int64_t rows, const char* name, const char* vectors) {
  CCP_CHECK(offsets.scalar_type() == ScalarType::Long && offsets.dim() == 1 && offsets.is_cpu() && segments >= 0 &&
                offsets.size(0) == segments + 1,
            name, ": expected int64 of shape [", segments < 0 ? 1 : segments + 1, "] on the CPU, got shape ",
            shape_of(offsets));
  const int64_t* cut = offsets.const_data_ptr<int64_t>();
  CCP_CHECK(cut[0] == 0 && cut[segments] == rows, name, ": expected to start at 0 and end at ", rows, ", the rows of ",
            vectors, ", got ", cut[0], " and ", cut[segments]);
  for (int64_t s = 0; s < segments; ++s)
    CCP_CHECK(cut[s] <= cut[s + 1], name, ": expected never to decrease, got ", cut[s], " and then ", cut[s + 1],
              " at position ", s);
}

}  // namespace

std::tuple<Tensor, Tensor> farthest_points_cpu(const Tensor& points_in, const Tensor& offsets_in,
                                               const std::optional<Tensor>& seeds_in,
                                               const std::optional<Tensor>& seed_offsets_in, int64_t k,
                                               const OpString& normalize, bool pad) {
  CCP_CHECK(k >= 1, "k: expected at least 1, got ", k);
  CCP_CHECK(seeds_in.has_value() == seed_offsets_in.has_value(), "seeds and seed_offsets: expected both or neither");
  check_vectors(points_in, "points");
  const Tensor points = torch::stable::contiguous(points_in);
  const Tensor offsets = torch::stable::contiguous(offsets_in);
  const int64_t segments = offsets.dim() == 1 ? offsets.size(0) - 1 : -1;
  check_offsets(offsets, segments, points.size(0), "offsets", "points");

  FarthestPointsProblem problem{};
  problem.points = {points.const_data_ptr(), dtype_of(points, "points"), offsets.const_data_ptr<int64_t>()};
  problem.segments = segments;
  problem.dim = points.size(1);
  problem.k = k;
  problem.normalize = find_normalize(normalize);
  problem.pad = pad;
  problem.parallel_for = torch_parallel_for();

  Tensor seeds, seed_offsets;
  RaggedVectors seed_vectors;
  if (seeds_in) {
    check_vectors(*seeds_in, "seeds");
    CCP_CHECK(seeds_in->size(1) == problem.dim, "seeds: expected vectors of ", problem.dim, " components, got shape ",
              shape_of(*seeds_in));
    seeds = torch::stable::contiguous(*seeds_in);
    seed_offsets = torch::stable::contiguous(*seed_offsets_in);
    check_offsets(seed_offsets, segments, seeds.size(0), "seed_offsets", "seeds");
    seed_vectors = {seeds.const_data_ptr(), dtype_of(seeds, "seeds"), seed_offsets.const_data_ptr<int64_t>()};
    problem.seeds = &seed_vectors;
  }

  const bool wide = problem.points.dtype == Dtype::kFloat64;
  Tensor indices = empty_like_on(points, {segments, k}, ScalarType::Long);
  Tensor radii = empty_like_on(points, {segments, k}, wide ? ScalarType::Double : ScalarType::Float);
  problem.indices = indices.mutable_data_ptr<int64_t>();
  problem.radii = radii.mutable_data_ptr();

  const FarthestPointsStatus status = CCP_CPU_KERNEL(farthest_points)(problem);
  const char* expected = problem.normalize == Normalize::kNone ? ": expected numbers, got NaN in row "
                                                               : ": expected a finite norm, got none in row ";
  CCP_CHECK(status.bad_point < 0, "points", expected, status.bad_point);
  CCP_CHECK(status.bad_seed < 0, "seeds", expected, status.bad_seed);
  return {indices, radii};
}

}  // namespace ccp
