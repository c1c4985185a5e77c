#include "kernels/cuda/centre_spread.h"
#include "kernels/cuda/similarity_loss/coefficients.cuh"
#include "kernels/cuda/similarity_loss/warp.cuh"

namespace ccp {
namespace cuda {

namespace {

constexpr int64_t kMostBlocks = 1024;

struct SpreadJob {
  Side side;
  int64_t classes, size, dim;
  double pairs;
};

// Lane k has the scale of centre k of a class.
CCP_DEVICE float scales_of_class(const SpreadJob& job, int64_t first) {
  float mine = 0;
  for (int k = 0; k < int(job.size); ++k) {
    const float scale = warp_scale(job.side, first + k, job.dim, Normalize::kUnit);
    if (int(threadIdx.x) % kWarp == k) mine = scale;
  }
  return mine;
}

CCP_DEVICE float distance_within(const SpreadJob& job, int64_t first, float scales, int a, int b) {
  return warp_distance(job.side, first + a, __shfl_sync(kFullWarp, scales, a), job.side, first + b,
                       __shfl_sync(kFullWarp, scales, b), job.dim);
}

__global__ void __launch_bounds__(kThreads) add_distances(const SpreadJob job, double* block_sums) {
  CCP_SHARED(bytes);
  double* sums = reinterpret_cast<double*>(bytes);
  const int warp = int(threadIdx.x) / kWarp;
  double sum = 0;
  for (int64_t c = int64_t(blockIdx.x) * kWarps + warp; c < job.classes; c += int64_t(gridDim.x) * kWarps) {
    const float scales = scales_of_class(job, c * job.size);
    for (int k = 1; k < int(job.size); ++k)
      for (int other = 0; other < k; ++other) sum += distance_within(job, c * job.size, scales, k, other);
  }
  if (threadIdx.x % kWarp == 0) sums[warp] = sum;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int w = 1; w < kWarps; ++w) sum += sums[w];
  block_sums[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(kWarp)
    add_blocks(const double* block_sums, int64_t blocks, double pairs, float* value) {
  double sum = 0;
  for (int64_t b = threadIdx.x; b < blocks; b += kWarp) sum += block_sums[b];
  sum = sum_over_warp(sum);
  if (threadIdx.x == 0) *value = float(sum / pairs);
}

__global__ void __launch_bounds__(kThreads) differentiate(const SpreadJob job, const float* grad, void* gradient) {
  const int lane = int(threadIdx.x) % kWarp, size = int(job.size);
  const float weight = float(*grad / job.pairs);
  const int64_t items = job.classes * job.size;
  for (int64_t item = int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarp; item < items;
       item += int64_t(gridDim.x) * kWarps) {
    const int64_t first = item / job.size * job.size;
    const int own = int(item - first);
    const float scales = scales_of_class(job, first), scale = __shfl_sync(kFullWarp, scales, own);
    float slopes = 0;  // lane k: of the distance to centre k
    for (int k = 0; k < size; ++k) {
      const float d = distance_within(job, first, scales, own, k);
      if (lane == k && d != 0) slopes = weight / d;
    }
    const auto component = [&](int64_t k, int64_t d) {
      return d < job.dim ? load_component(job.side, (first + k) * job.dim + d) : 0.0f;
    };
    // With respect to the normalised centre, component d. All lanes together.
    const auto pull = [&](int64_t d) {
      // Rounded for themselves, as in load_scaled.
      const float v = generic::rounded_product(component(own, d), scale);
      float g = 0;
      for (int k = 0; k < size; ++k)
        g += (v - generic::rounded_product(component(k, d), __shfl_sync(kFullWarp, scales, k))) *
             __shfl_sync(kFullWarp, slopes, k);
      return g;
    };
    float dot = 0;
    for (int64_t d = lane; d - lane < job.dim; d += kWarp) dot += pull(d) * component(own, d) * scale;
    dot = sum_over_warp(dot);
    const ToOriginal to_original(Normalize::kUnit, scale, 0, dot);
    for (int64_t d = lane; d - lane < job.dim; d += kWarp) {
      const float g = to_original(pull(d), component(own, d));
      if (d < job.dim) store_component(gradient, job.side.dtype, item * job.dim + d, g);
    }
  }
}

SpreadJob job_of(const CentreSpread& p) {
  return {{p.centres, p.dtype, p.classes * p.size, nullptr, p.size, 0},
          p.classes,
          p.size,
          p.dim,
          centre_pairs(p.classes, p.size)};
}

int64_t blocks_for(int64_t warps) {
  const int64_t blocks = divide_up(warps, kWarps);
  return blocks < kMostBlocks ? blocks : kMostBlocks;
}

// Otherwise the value is zero, and there is no gradient.
bool has_components(const CentreSpread& p) { return p.classes * p.size * p.dim > 0; }

}  // namespace

int64_t centre_spread_blocks(const CentreSpread& problem) { return blocks_for(problem.classes); }

cudaError_t centre_spread(const CentreSpread& problem, double* scratch, float* value, cudaStream_t stream) {
  if (!has_components(problem)) return clear_memory(value, sizeof(float), stream);
  const SpreadJob job = job_of(problem);
  const int64_t blocks = centre_spread_blocks(problem);
  CCP_LAUNCH(add_distances, dim3(unsigned(blocks)), dim3(kThreads), sizeof(double) * kWarps, stream, job, scratch);
  CCP_LAUNCH(add_blocks, dim3(1), dim3(kWarp), 0, stream, scratch, blocks, job.pairs, value);
  return cudaGetLastError();
}

cudaError_t centre_spread_backward(const CentreSpread& problem, const float* grad, void* gradient,
                                   cudaStream_t stream) {
  if (!has_components(problem)) return cudaSuccess;
  const int64_t blocks = divide_up(problem.classes * problem.size, kWarps);
  CCP_LAUNCH(differentiate, dim3(unsigned(blocks < 65536 ? blocks : 65536)), dim3(kThreads), 0, stream, job_of(problem),
             grad, gradient);
  return cudaGetLastError();
}

}  // namespace cuda
}  // namespace ccp
