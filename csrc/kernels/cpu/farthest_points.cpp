// Two regimes share the arithmetic. A small segment (CCP: a handful of points of one class) is selected from by one
// thread out of its cache, many segments at a time. A large one is streamed by all threads.
//
// Compiled with -ffp-contract=off (CMakeLists.txt): the header fixes every rounding.
#include "kernels/cpu/farthest_points.h"

#include "common/buffer.h"
#include "kernels/cpu/farthest_points_large.h"
#include "kernels/cpu/farthest_points_small.h"

namespace ccp {
namespace CCP_CAPABILITY {
namespace k_center {

constexpr int64_t kSmallSegment = 1 << 17;  // elements of points and seeds: half a core's L2 cache in float
constexpr int64_t kTasks = 256;             // groups of small segments; more than the threads of any machine in use

template <class T>
FarthestPointsStatus select_all(const FarthestPointsProblem& problem) {
  const int64_t* offsets = problem.points.offsets;
  const int64_t* seed_offsets = problem.seeds ? problem.seeds->offsets : nullptr;
  const auto seeds_before = [&](int64_t s) { return seed_offsets ? seed_offsets[s] : 0; };
  const auto vectors_of = [&](int64_t s) {
    return offsets[s + 1] - offsets[s] + seeds_before(s + 1) - seeds_before(s);
  };
  const auto is_small = [&](int64_t s) { return vectors_of(s) * problem.dim <= kSmallSegment; };
  BadRow bad_point, bad_seed;

  // Tasks are runs of segments with about the same number of vectors. +1 a segment: an empty one is some work as well.
  const int64_t segments = problem.segments;
  const int64_t tasks = min(kTasks, segments);
  Buffer<int64_t> first_segment(tasks + 1), scratch_begin(tasks + 1);
  const auto work_before = [&](int64_t s) { return offsets[s] + seeds_before(s) + s; };
  first_segment[0] = scratch_begin[0] = 0;
  for (int64_t task = 0, s = 0; task < tasks; ++task) {
    int64_t scratch = 0;
    const int64_t goal = work_before(segments) / tasks * (task + 1);
    for (; s < segments && (task == tasks - 1 || work_before(s) < goal); ++s)
      if (is_small(s))
        scratch =
            max(scratch, scratch_of(offsets[s + 1] - offsets[s], seeds_before(s + 1) - seeds_before(s), problem.dim));
    first_segment[task + 1] = s;
    scratch_begin[task + 1] = scratch_begin[task] + scratch;
  }
  Buffer<T> scratch(scratch_begin[tasks]);
  problem.parallel_for(tasks, [&](int64_t task) {
    for (int64_t s = first_segment[task]; s < first_segment[task + 1]; ++s)
      if (is_small(s)) select_small<T>(problem, s, scratch + scratch_begin[task], &bad_point, &bad_seed);
  });
  for (int64_t s = 0; s < segments; ++s)
    if (!is_small(s)) select_large<T>(problem, s, &bad_point, &bad_seed);
  return {bad_point.result(), bad_seed.result()};
}

}  // namespace k_center

FarthestPointsStatus farthest_points(const FarthestPointsProblem& problem) {
  return problem.points.dtype == Dtype::kFloat64 ? k_center::select_all<double>(problem)
                                                 : k_center::select_all<float>(problem);
}

}  // namespace CCP_CAPABILITY
}  // namespace ccp
