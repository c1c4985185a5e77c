// What follows the gradient kernels, and prepares them: small kernels that do not depend on the loss.
#include "kernels/cuda/similarity_loss/finish.h"
#include "kernels/cuda/similarity_loss/flags.cuh"
#include "kernels/cuda/similarity_loss/warp.cuh"

namespace ccp {
namespace cuda {

namespace {

constexpr int64_t kMostBlocks = 4096;

struct FinishJob {
  GradientSide sides[2];
  int64_t counts[2];  // items of each
  int64_t dim;
  Normalize normalize;
};

// Adds up the blocks' parts of each item, and goes on to the original vector; a team of so many warps for each. Several
// warps share out the slices, where there are many.
template <int kTeam>
__global__ void __launch_bounds__(kThreads) finish_gradient(const __grid_constant__ FinishJob job) {
  constexpr int kTeams = kWarps / kTeam;
  constexpr int kDims = kTeam == 1 ? kWarp : 4 * kWarp;  // components at a time; those of one stay with one thread
  CCP_SHARED(bytes);
  float* sums = reinterpret_cast<float*>(bytes);  // [kTeam, kDims]
  const int lane = int(threadIdx.x) % kWarp, member = int(threadIdx.x) % (kTeam * kWarp);
  const int warp = member / kWarp, team = int(threadIdx.x) / (kTeam * kWarp);
  const auto sum_over_team = [&](float x) {
    x = sum_over_warp(x);
    if (kTeam == 1) return x;
    if (lane == 0) sums[warp] = x;
    __syncthreads();
    float sum = 0;
    for (int w = 0; w < kTeam; ++w) sum += sums[w];
    __syncthreads();
    return sum;
  };
  // f(d) for each component of this thread's.
  const auto for_each = [&](const auto& f) {
    if (member < kDims)
      for (int64_t d = member; d < job.dim; d += kDims) f(d);
  };

  for (int64_t place = int64_t(blockIdx.x) * kTeams + team; place < job.counts[0] + job.counts[1];
       place += int64_t(gridDim.x) * kTeams) {
    const bool is_first = place < job.counts[0];
    const GradientSide& side = job.sides[is_first ? 0 : 1];
    const int64_t p = is_first ? place : place - job.counts[0], item = side.owner.at(p);
    if (item < 0) continue;
    const int64_t begin = item * job.dim;
    const int64_t padded = divide_up(positions_of(side.owner.side), kGradientOwner) * kGradientOwner;
    float* whole = side.partial + p * job.dim;  // the first slice's part
    const auto part = [&](int64_t slice, int64_t d) { return whole[slice * padded * job.dim + d]; };

    float along = 0;
    for (int64_t slice = member; slice < side.slices; slice += kTeam * kWarp)
      along += side.partial_along[slice * padded + p];
    along = sum_over_team(along);
    if (kTeam == 1) {
      for_each([&](int64_t d) {
        float g = 0;
        for (int64_t slice = 0; slice < side.slices; ++slice) g += part(slice, d);
        whole[d] = g;
      });
    } else {
      for (int64_t first = 0; first < job.dim; first += kDims) {
        float g[kDims / kWarp] = {};
        for (int64_t slice = warp; slice < side.slices; slice += kTeam)
#pragma unroll
          for (int i = 0; i < kDims / kWarp; ++i) {
            const int64_t d = first + i * kWarp + lane;
            if (d < job.dim) g[i] += part(slice, d);
          }
#pragma unroll
        for (int i = 0; i < kDims / kWarp; ++i) sums[warp * kDims + i * kWarp + lane] = g[i];
        __syncthreads();
        if (member < kDims && first + member < job.dim) {
          float sum = 0;
          for (int w = 0; w < kTeam; ++w) sum += sums[w * kDims + member];
          whole[first + member] = sum;
        }
        __syncthreads();
      }
    }

    const auto original = [&](int64_t d) { return load_component(side.owner.side, begin + d); };
    float squares = 0, dot = 0;
    for_each([&](int64_t d) { squares += original(d) * original(d); });
    squares = sum_over_team(squares);
    const double exact = in_range(squares) ? double(squares) : exact_squares(side.owner.side, item, job.dim);
    const float scale = normalizing_scale(job.normalize, exact);
    for_each([&](int64_t d) { dot += whole[d] * (original(d) * scale); });
    dot = sum_over_team(dot);
    const ToOriginal to_original(job.normalize, scale, along, dot);
    for_each([&](int64_t d) {
      store_component(side.gradient, side.owner.side.dtype, begin + d, to_original(whole[d], original(d)));
    });
  }
}

// Two launches list the flags: how many are set in each block's share, then where they are.
CCP_DEVICE int64_t share_begin(int64_t n, int64_t block) { return divide_up(n, gridDim.x) * block; }

__global__ void __launch_bounds__(kThreads) count_flags(const uint8_t* flags, int64_t n, int64_t* block_counts) {
  CCP_SHARED(bytes);
  int* counts = reinterpret_cast<int*>(bytes);
  const int64_t end = min_of(share_begin(n, blockIdx.x + 1), n);
  int mine = 0;
  for (int64_t i = share_begin(n, blockIdx.x) + threadIdx.x; i < end; i += kThreads) mine += flags[i] != 0;
  mine = sum_over_warp(mine);
  if (threadIdx.x % kWarp == 0) counts[threadIdx.x / kWarp] = mine;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int w = 1; w < kWarps; ++w) mine += counts[w];
  block_counts[blockIdx.x] = mine;
}

struct ListShared {
  int64_t before;
  int list[kFlags], counts[kWarps];
};

__global__ void __launch_bounds__(kThreads)
    list_flagged(const uint8_t* flags, int64_t n, const int64_t* block_counts, int64_t* chosen, int64_t* count) {
  CCP_SHARED(bytes);
  ListShared& shared = *reinterpret_cast<ListShared*>(bytes);
  if (threadIdx.x < kWarp) {
    int64_t before = 0;
    for (int64_t b = threadIdx.x; b < blockIdx.x; b += kWarp) before += block_counts[b];
    before = sum_over_warp(before);
    if (threadIdx.x == 0) shared.before = before;
  }
  __syncthreads();
  int64_t to = shared.before;
  const int64_t end = min_of(share_begin(n, blockIdx.x + 1), n);
  for (int64_t first = share_begin(n, blockIdx.x); first < end; first += kFlags) {
    const int listed = list_flags(flags + first, int(min_of(end - first, kFlags)), shared.list, shared.counts);
    for (int i = int(threadIdx.x); i < listed; i += kThreads) chosen[to + i] = first + shared.list[i];
    to += listed;
  }
  if (blockIdx.x == gridDim.x - 1 && threadIdx.x == 0) *count = to;
}

}  // namespace

cudaError_t launch_finish_gradient(const GradientSide* sides, int count, int64_t dim, Normalize normalize,
                                   cudaStream_t stream) {
  FinishJob job{};
  job.dim = dim;
  job.normalize = normalize;
  int with_parts = 0;
  int64_t most_slices = 0;
  for (int i = 0; i < count; ++i) {
    if (!sides[i].partial) continue;
    job.sides[with_parts] = sides[i];
    job.counts[with_parts++] = positions_of(sides[i].owner.side);
    if (sides[i].slices > most_slices) most_slices = sides[i].slices;
  }
  const int64_t items = job.counts[0] + job.counts[1];
  if (items == 0) return cudaSuccess;
  const bool many = most_slices > kWarps;
  const int64_t blocks = min_of(many ? items : divide_up(items, kWarps), kMostBlocks);
  const dim3 grid{unsigned(blocks)};
  if (many)
    CCP_LAUNCH(finish_gradient<kWarps>, grid, dim3(kThreads), kWarps * 4 * kWarp * sizeof(float), stream, job);
  else
    CCP_LAUNCH(finish_gradient<1>, grid, dim3(kThreads), 0, stream, job);
  return cudaGetLastError();
}

int64_t list_blocks(int64_t n) { return min_of(divide_up(n, kFlags), kMostBlocks); }

cudaError_t launch_list_active(const uint8_t* flags, int64_t n, int64_t* block_counts, int64_t* chosen, int64_t* count,
                               cudaStream_t stream) {
  const dim3 grid{unsigned(list_blocks(n))};
  CCP_LAUNCH(count_flags, grid, dim3(kThreads), kWarps * sizeof(int), stream, flags, n, block_counts);
  CCP_LAUNCH(list_flagged, grid, dim3(kThreads), sizeof(ListShared), stream, flags, n, block_counts, chosen, count);
  return cudaGetLastError();
}

}  // namespace cuda
}  // namespace ccp
