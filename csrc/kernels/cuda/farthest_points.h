// Greedy k-center on the GPU: the CPU's indices and radii, bit by bit (contract: kernels/cpu/farthest_points.h).
//
// Offsets live on the device, so a launcher does not know how large any segment is, and to ask would stall the stream.
// It plans for the average, and the kernels look at each segment themselves:
// - farthest_points/segments.cuh: one launch for all segments. A block has shared memory for several average ones, a
//   warp each. A segment that finds no room there is then selected from by the whole block, staged if it fits alone,
//   streamed from global memory if not. Right for every size, slow only where few segments dwarf the others.
// - farthest_points/large.cuh: every segment of at least plan.large_elements components, by the whole GPU, with two
//   launches per pick. Planned for unless nothing suggests such segments; where there are none, the launches are empty.
//
// What the CPU reports as an error cannot be reported without waiting for the GPU:
// - A point that holds NaN, or has no finite norm where one is needed, is picked only when no other is left, the lowest
//   index first. It counts for no radius, and once picked covers no other. A seed like it is no centre.
// - Offsets are cut to 0 .. rows, so that nothing else is touched. If they fall, the result is meaningless.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/cuda.h"
#include "common/dtype.h"
#include "common/normalize.h"

namespace ccp {
namespace cuda {

// Vectors cut into segments: segment s is the rows offsets[s] .. offsets[s + 1] - 1.
struct RaggedVectors {
  const void* data;  // [rows, dim], contiguous; nullptr with no offsets: there are none
  Dtype dtype;       // of seeds: that of points, or what these are computed in (float, double for float64)
  int64_t rows;
  const int64_t* offsets;  // [segments + 1]
};

struct FarthestPointsProblem {
  RaggedVectors points, seeds;
  int64_t segments;
  int64_t largest_segment;  // rows, at most; points.rows if nothing better is known
  int64_t dim;              // at most kMaxDim
  int64_t k;                // at least 1
  Normalize normalize;
  bool pad;          // fewer than k points: fill with -1 instead of repeating the picks in order
  int64_t* indices;  // [segments, k] rows of points
  void* radii;       // [segments, k] float, or double for float64 points

  static constexpr int64_t kMaxDim = 1 << 30;
};

// Results do not depend on the plan.
struct FarthestPointsPlan {
  int segments_per_block;  // 1 .. 8
  int64_t shared_bytes;    // of dynamic shared memory for each block
  int64_t large_elements;  // segments of so many components and more take the launches for large ones; kNone: none do
  int64_t rows_per_chunk;  // of a large segment, by one block
  static constexpr int64_t kNone = INT64_MAX;
};

// `shared_limit`: what a block may have (cudaDevAttrMaxSharedMemoryPerBlockOptin).
FarthestPointsPlan plan_farthest_points(const FarthestPointsProblem& problem, int64_t shared_limit);

// At most O(rows of points and seeds) numbers, and with large segments a copy of the seeds and of the picks made there.
size_t farthest_points_workspace_bytes(const FarthestPointsProblem& problem, const FarthestPointsPlan& plan);

cudaError_t farthest_points(const FarthestPointsProblem& problem, const FarthestPointsPlan& plan, void* workspace,
                            cudaStream_t stream);

}  // namespace cuda
}  // namespace ccp
