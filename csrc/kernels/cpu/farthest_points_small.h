// k-center in a segment that fits in a core's cache, by one thread.
#pragma once

#include "kernels/cpu/farthest_points_segment.h"

namespace ccp {
namespace CCP_CAPABILITY {
namespace k_center {

// What select_small needs, in numbers of type T.
inline int64_t scratch_of(int64_t points, int64_t seeds, int64_t dim) {
  return (points + seeds) * round_up(dim, kSumLanes) + round_up(points, kSumLanes);
}

// Brings the next segment into cache while this one is worked on, some lines with every block: all at once they would
// fill the core's miss buffers and stall it.
class NextSegment {
 public:
  template <class T>
  NextSegment(const Vectors<T>& next, int64_t blocks)
      : begin(next.address(0)),
        left(min(next.count * next.row_bytes(), kPrefetchLimit)),
        step(round_up(left / max(blocks, 1) + 1, 64)) {}

  void advance() {
    const int64_t bytes = min(step, left);
    prefetch(begin, bytes);
    begin += uintptr_t(bytes);
    left -= bytes;
  }

 private:
  static constexpr int64_t kPrefetchLimit = 1 << 14;  // half of L1; from there on hardware prefetchers have caught up
  uintptr_t begin;
  int64_t left, step;
};

template <class T>
Vectors<T> segment_after(const FarthestPointsProblem& problem, const RaggedVectors* side, int64_t s) {
  return side && s + 1 < problem.segments ? segment_of<T>(*side, s + 1, problem.dim) : Vectors<T>{};
}

template <class T>
void select_small(const FarthestPointsProblem& problem, int64_t s, T* scratch, BadRow* bad_point, BadRow* bad_seed) {
  Segment<T> segment{segment_of<T>(problem.points, s, problem.dim), 0, 0, scratch, nullptr, bad_point, bad_seed};
  const int64_t n = segment.points.count;
  const int64_t stride = segment.points.stride;
  const T* seeds = nullptr;
  T* staged = scratch + round_up(n, kSumLanes);
  if (problem.seeds) {
    const Vectors<T> from = segment_of<T>(*problem.seeds, s, problem.dim);
    segment.first_seed = from.first;
    segment.seeds = from.count;
    seeds = stage<T>(from, problem.normalize, staged + n * stride, nullptr, bad_seed);
  }
  T* rank = segment.seeds == 0 ? segment.nearest : nullptr;
  const T* points = stage<T>(segment.points, problem.normalize, staged, rank, bad_point);

  const int64_t blocks = (n + kBlock - 1) / kBlock * (segment.seeds + min(problem.k, n));
  NextSegment next_points(segment_after<T>(problem, &problem.points, s), blocks);
  NextSegment next_seeds(segment_after<T>(problem, problem.seeds, s), blocks);
  const auto approach = [&](const T* centre, int64_t id) {
    for (int64_t i = 0; i < n; i += kBlock) {
      Block<T> block;
      block.size = int(min(kBlock, n - i));
      for (int r = 0; r < block.size; ++r) block.rows[r] = points + (i + r) * stride, block.ids[r] = i + r;
      segment.approach(block, centre, id);
      next_points.advance();
      next_seeds.advance();
    }
  };
  if (segment.seeds > 0) {
    for (int64_t i = 0; i < n; ++i) segment.nearest[i] = T(__builtin_inf());
    for (int64_t c = 0; c < segment.seeds; ++c) approach(seeds + c * stride, c);
  }
  pick_greedily<T>(
      problem, s, segment,
      [&](int64_t point, int64_t i) {
        if (i == 0 && segment.seeds == 0)  // so far `nearest` ranked norms
          for (int64_t j = 0; j < n; ++j) segment.nearest[j] = T(__builtin_inf());
        segment.nearest[point] = T(-1);
        approach(points + point * stride, segment.seeds + i);
      },
      [&] { return segment.farthest(0, n); });
}

}  // namespace k_center
}  // namespace CCP_CAPABILITY
}  // namespace ccp
