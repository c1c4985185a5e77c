// Greedy k-center (farthest-point) selection over ragged segments: Gonzalez, "Clustering to minimize the maximum
// intercluster distance", 1985. S starts as the segment's seeds; k times the point farthest from S joins it.
//
// What every implementation (CPU, CUDA, emulator) must reproduce, so that all return the same indices bit by bit:
// - Numbers are float (double for float64 points). Half types and seeds are converted first; with a normalisation each
//   component is then multiplied by the vector's scale, and that rounded product is the vector from there on.
// - ‖a − b‖² is summed in 16 lanes: lane l adds (a[d] − b[d])² for d = l, l + 16, l + 32, ... in this order; then lanes
//   l and l + 8 are added, then l and l + 4, l + 2, l + 1. Subtraction, square and sum are rounded one by one: no fused
//   multiply-add. ‖a‖² is summed the same way.
// - Only where that sum is NaN (infinite minus infinite) it is taken again with equal components counting as 0.
// - The scale is T(1 / √‖a‖²), root and quotient in double; where ‖a‖² <= 1e-30 or >= 1e30 the squares are added again
//   in double, one component after the other. unit: scale 0 for a norm <= 1e-12. ball: scale 1 for a norm <= 1.
// - Without seeds the first pick is the largest norm after normalisation: ‖a‖² (none), min(‖a‖², 1) (ball),
//   1, or 0 for scale 0 (unit).
// - Ties go to the lowest index. A picked point is out, whatever its distance. Only the order of summation matters:
//   skipping a distance that provably cannot lower a minimum is allowed.
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "common/normalize.h"
#include "common/parallel.h"
#include "kernels/cpu/capability.h"

namespace ccp {

// Vectors cut into segments: segment s is the rows offsets[s] .. offsets[s + 1] - 1.
struct RaggedVectors {
  const void* data;  // [offsets[segments], dim], contiguous
  Dtype dtype;
  const int64_t* offsets;  // [segments + 1], from 0, never decreasing
};

struct FarthestPointsProblem {
  RaggedVectors points;
  const RaggedVectors* seeds;  // as many segments; nullptr: none
  int64_t segments;
  int64_t dim;
  int64_t k;
  Normalize normalize;
  bool pad;          // fewer than k points: fill with -1 instead of repeating the picks in order
  int64_t* indices;  // [segments, k] rows of points
  void* radii;       // [segments, k] float, or double for float64 points
  ParallelFor parallel_for;
};

// Rows that cannot be compared: they hold NaN or, with a normalisation, have no finite norm. The lowest of each side,
// -1 where there is none; with either, the output is meaningless.
struct FarthestPointsStatus {
  int64_t bad_point;
  int64_t bad_seed;
};

}  // namespace ccp

CCP_DECLARE_CPU_KERNEL(FarthestPointsStatus, farthest_points, (const FarthestPointsProblem& problem))
