// Plans, cuts up the workspace, and launches. No number chosen here changes a result.
#include "kernels/cuda/farthest_points.h"
#include "kernels/cuda/farthest_points/launch.h"
#include "kernels/cuda/farthest_points/layout.h"
#include "kernels/cuda/farthest_points/segments.cuh"

namespace ccp {
namespace cuda {
namespace k_center {
namespace {

constexpr int64_t kFewSegments = 512;        // a block for each keeps no GPU's multiprocessors busier than they can be
constexpr int64_t kLargeElements = 1 << 18;  // one block would need longer for a pass than two more launches take
// Segments of so many times the average are looked for only where there is enough data to hide the launches for them.
constexpr int64_t kUnlikely = 16;
constexpr int64_t kMuchData = 1 << 26;
constexpr int64_t kChunksWanted = 1024;  // all of them resident at once on the largest GPUs
constexpr int64_t kMostRows = 2048;      // of a chunk: its lists are in shared memory
constexpr int64_t kReserved = 1 << 10;   // bytes of shared memory that a block takes besides its own

int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }
int64_t divide_up(int64_t n, int64_t by) { return (n + by - 1) / by; }

int64_t number_bytes(const FarthestPointsProblem& p) { return p.points.dtype == Dtype::kFloat64 ? 8 : 4; }

}  // namespace
}  // namespace k_center

namespace {

// All segments are empty: indices of -1, and radii of zero.
cudaError_t fill_empty(const FarthestPointsProblem& p, cudaStream_t stream) {
  const int64_t picks = p.segments * p.k;
  if (picks == 0) return cudaSuccess;
  const cudaError_t error = cudaMemsetAsync(p.indices, 0xff, sizeof(int64_t) * size_t(picks), stream);
  return error == cudaSuccess ? clear_memory(p.radii, picks * k_center::number_bytes(p), stream) : error;
}

}  // namespace

FarthestPointsPlan plan_farthest_points(const FarthestPointsProblem& p, int64_t shared_limit) {
  using namespace k_center;
  const int64_t bytes = number_bytes(p), stride = stride_of(p.dim), segments = max(p.segments, 1);
  const int64_t average_rows = divide_up(p.points.rows, segments);
  const int64_t average = max(room_of(average_rows, divide_up(p.seeds.rows, segments), stride).end, 1);
  FarthestPointsPlan plan{};
  plan.rows_per_chunk = min(max(divide_up(p.largest_segment / kChunksWanted, kQuads) * kQuads, kQuads), kMostRows);

  // Registers let two blocks share a multiprocessor: each may have half of its shared memory, or one has all.
  const int64_t whole = (shared_limit - kBestBytes) / bytes;
  const int64_t half = ((shared_limit + kReserved) / 2 - kReserved - kBestBytes) / bytes;
  const int64_t least = kSeedBatch * stride;
  // Average segments that fit side by side, with a quarter to spare for those above it.
  const auto fitting = [&](int64_t pool) { return min(pool * 4 / 5 / average, kWarps); };
  const int64_t shared_pool = 2 * fitting(half) >= fitting(whole) ? half : whole;
  const bool fills_a_block = average_rows > kQuads / 2;
  int64_t pool;
  if (segments > kFewSegments && fitting(shared_pool) > (fills_a_block ? kWarps - 1 : 1)) {
    plan.segments_per_block = int(fitting(shared_pool));
    pool = average * plan.segments_per_block * 5 / 4;
  } else {
    plan.segments_per_block = 1;
    pool = fitting(half) > 0 ? half : average <= whole ? whole : least;
  }
  plan.shared_bytes = kBestBytes + min(max(pool, least), whole) * bytes;

  const bool possible = p.largest_segment * p.dim >= kLargeElements;
  const bool expected = average_rows * p.dim * kUnlikely >= kLargeElements || p.points.rows * p.dim >= kMuchData;
  plan.large_elements = possible && expected ? kLargeElements : FarthestPointsPlan::kNone;
  if (least > whole) plan.large_elements = 0;  // vectors too long for a block's shared memory
  return plan;
}

size_t farthest_points_workspace_bytes(const FarthestPointsProblem& problem, const FarthestPointsPlan& plan) {
  using k_center::lay_out;
  const bool wide = problem.points.dtype == Dtype::kFloat64;
  return (wide ? lay_out<double>(problem, plan, nullptr) : lay_out<float>(problem, plan, nullptr)).bytes;
}

cudaError_t farthest_points(const FarthestPointsProblem& problem, const FarthestPointsPlan& plan, void* workspace,
                            cudaStream_t stream) {
  if (problem.points.rows == 0 || problem.segments == 0) return fill_empty(problem, stream);
  switch (problem.points.dtype) {
    case Dtype::kFloat32:
      return k_center::launch_float32(problem, plan, workspace, stream);
    case Dtype::kFloat64:
      return k_center::launch_float64(problem, plan, workspace, stream);
    case Dtype::kBFloat16:
      return k_center::launch_bfloat16(problem, plan, workspace, stream);
    default:
      return k_center::launch_float16(problem, plan, workspace, stream);
  }
}

}  // namespace cuda
}  // namespace ccp
