// What follows the gradient kernel, and prepares it: small kernels that do not depend on the loss.
#include "kernels/cuda/similarity_loss/finish.h"
#include "kernels/cuda/similarity_loss/warp.cuh"

namespace ccp {
namespace cuda {

namespace {

// Adds up the blocks' parts of each owned item, a warp for each, and goes on to the original vector.
__global__ void __launch_bounds__(kThreads) finish_gradient(const GradientJob job) {
  const int lane = int(threadIdx.x) % kWarp;
  const int64_t count = job.owner.positions();
  const int64_t padded = divide_up(positions_of(job.owner.side), kGradientOwner) * kGradientOwner;
  for (int64_t p = int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarp; p < count; p += int64_t(gridDim.x) * kWarps) {
    if (job.owner.at(p) < 0) continue;
    const int64_t begin = job.owner.at(p) * job.dim;
    float squares = 0, dot = 0, along = 0;
    for (int64_t slice = 0; slice < job.slices; ++slice) along += job.partial_along[slice * padded + p];
    for (int64_t d = lane; d < job.dim; d += kWarp) {
      float g = 0;
      for (int64_t slice = 0; slice < job.slices; ++slice) g += job.partial[(slice * padded + p) * job.dim + d];
      job.partial[p * job.dim + d] = g;
      const float v = load_component(job.owner.side, begin + d);
      squares += v * v;
    }
    squares = sum_over_warp(squares);
    double exact = squares;
    if (!in_range(squares)) exact = exact_squares(job.owner.side, job.owner.at(p), job.dim);
    const float scale = normalizing_scale(job.normalize, exact);
    for (int64_t d = lane; d < job.dim; d += kWarp)
      dot += job.partial[p * job.dim + d] * (load_component(job.owner.side, begin + d) * scale);
    dot = sum_over_warp(dot);
    for (int64_t d = lane; d < job.dim; d += kWarp)
      store_component(job.gradient, job.owner.side.dtype, begin + d,
                      gradient_of_original(job.normalize, job.partial[p * job.dim + d],
                                           load_component(job.owner.side, begin + d), scale, along, dot));
  }
}

// One block: chosen = the positions of nonzero flags, in order.
constexpr int kListThreads = 1024;

__global__ void __launch_bounds__(kListThreads)
    list_active(const uint8_t* flags, int64_t n, int64_t* chosen, int64_t* count) {
  CCP_SHARED(bytes);
  int64_t* sums = reinterpret_cast<int64_t*>(bytes);
  const int64_t begin = n * threadIdx.x / kListThreads, end = n * (threadIdx.x + 1) / kListThreads;
  int64_t mine = 0;
  for (int64_t i = begin; i < end; ++i) mine += flags[i] != 0;
  sums[threadIdx.x] = mine;
  for (int distance = 1; distance < kListThreads; distance *= 2) {
    __syncthreads();
    const int64_t before = int(threadIdx.x) >= distance ? sums[threadIdx.x - distance] : 0;
    __syncthreads();
    sums[threadIdx.x] += before;
  }
  int64_t to = sums[threadIdx.x] - mine;
  for (int64_t i = begin; i < end; ++i)
    if (flags[i]) chosen[to++] = i;
  if (threadIdx.x == kListThreads - 1) *count = to;
}

}  // namespace

cudaError_t launch_finish_gradient(const GradientJob& job, cudaStream_t stream) {
  const int64_t blocks = divide_up(positions_of(job.owner.side), kWarps);
  CCP_LAUNCH(finish_gradient, dim3(unsigned(blocks < 4096 ? blocks : 4096)), dim3(kThreads), 0, stream, job);
  return cudaGetLastError();
}

cudaError_t launch_list_active(const uint8_t* flags, int64_t n, int64_t* chosen, int64_t* count, cudaStream_t stream) {
  CCP_LAUNCH(list_active, dim3(1), dim3(kListThreads), kListThreads * sizeof(int64_t), stream, flags, n, chosen, count);
  return cudaGetLastError();
}

}  // namespace cuda
}  // namespace ccp
