// The second launch: a warp for each anchor puts together what the slices have found.
#pragma once

#include "kernels/cuda/nearest_references/job.cuh"

namespace ccp {
namespace cuda {
namespace nearest {

struct MergeJob {
  const uint64_t* found;  // [anchors, slices, found_k]
  int64_t anchors, slices, found_k;
  int64_t k;
  int64_t padded;     // the power of two from found_k on
  uint64_t* sorting;  // [anchors, padded]; nullptr: in shared memory, [kWarps, padded]
  int64_t* indices;
  float* distances;
};

__global__ void __launch_bounds__(kThreads) merge_slices(const MergeJob job) {
  CCP_SHARED(shared);
  const int warp = int(threadIdx.x) / kWarp, lane = int(threadIdx.x) % kWarp;
  const int64_t row = int64_t(blockIdx.x) * kWarps + warp;
  if (row >= job.anchors) return;
  uint64_t* keys =
      job.sorting ? job.sorting + row * job.padded : reinterpret_cast<uint64_t*>(shared) + warp * job.padded;
  const uint64_t* found = job.found + row * job.slices * job.found_k;
  const int64_t many = job.slices * job.found_k;
  int64_t count;
  if (job.found_k == 1) {
    const uint64_t key = nearest_of(found, many);
    if (lane == 0) keys[0] = key;
    count = key != kNoKey;
  } else {
    count = collect(found, many, bound_of_nearest(found, many, job.found_k), keys);
  }
  for (int64_t i = count + lane; i < job.padded; i += kWarp) keys[i] = kNoKey;
  __syncwarp();
  sort_keys(keys, job.padded);
  for (int64_t i = lane; i < job.k; i += kWarp) {
    const bool there = i < count;
    job.indices[row * job.k + i] = there ? index_of(keys[i]) : -1;
    job.distances[row * job.k + i] = there ? ::sqrtf(squared_of(keys[i])) : __builtin_inff();
  }
}

}  // namespace nearest
}  // namespace cuda
}  // namespace ccp
