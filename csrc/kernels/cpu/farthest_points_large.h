// k-center in a segment that has to be streamed from memory: chunk by chunk, all threads on it, skipping points that
// the triangle inequality rules out. Chunks are of a fixed size and joined in order.
#pragma once

#include "common/buffer.h"
#include "kernels/cpu/farthest_points_segment.h"

namespace ccp {
namespace CCP_CAPABILITY {
namespace k_center {

constexpr int64_t kChunkElements = 1 << 16;
constexpr int64_t kPrefetchBytes = 1 << 12;  // how far ahead of the arithmetic

template <class T>
void select_large(const FarthestPointsProblem& problem, int64_t s, BadRow* bad_point, BadRow* bad_seed) {
  Vectors<T> points = segment_of<T>(problem.points, s, problem.dim);
  const int64_t n = points.count;
  const int64_t stride = points.stride;
  const int64_t chunk = max(kBlock, kChunkElements / stride);  // at most kChunkElements / kSumLanes
  const int64_t chunks = (n + chunk - 1) / chunk;
  Vectors<T> seeds{};
  if (problem.seeds) seeds = segment_of<T>(*problem.seeds, s, problem.dim);

  Buffer<T> nearest(n), scales(problem.normalize == Normalize::kNone ? 0 : n);
  Buffer<int32_t> owner(n);
  Buffer<T> centres((seeds.count + min(problem.k, n)) * stride);
  Buffer<T> safe(seeds.count + min(problem.k, n));  // per centre: points nearer than this cannot change
  Buffer<T> rows(points.in_place() && problem.normalize == Normalize::kNone ? 0 : chunks * kBlock * stride);
  Buffer<Farthest<T>> best(chunks);
  const int64_t row_bytes = points.row_bytes();
  const int64_t ahead = max(1, kPrefetchBytes / row_bytes);  // in rows
  const auto row_buffer = [&](int64_t c) { return static_cast<T*>(rows) + c * kBlock * stride; };
  const auto for_each_chunk = [&](const auto& body) {
    problem.parallel_for(chunks, [&](int64_t c) { body(c, c * chunk, min(n, (c + 1) * chunk)); });
  };

  if (problem.normalize != Normalize::kNone || seeds.count == 0) {
    T* scale_of = problem.normalize == Normalize::kNone ? nullptr : static_cast<T*>(scales);
    for_each_chunk([&](int64_t c, int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        prefetch(points.address(i + ahead), row_bytes);
        const T* v = points.row(i, row_buffer(c));
        const T squares = squared_norm(v, stride);
        const T scale = scale_of ? normalizing_scale(problem.normalize, v, squares, points.dim) : T(1);
        if (squares != squares || scale != scale) bad_point->report(points.first + i);
        if (scale_of) scale_of[i] = scale;
        nearest[i] = norm_rank(problem.normalize, squares, scale);
      }
    });
    points.scale = scale_of;
  }
  Segment<T> segment{points, seeds.first, seeds.count, nearest, owner, bad_point, bad_seed};
  const T* staged_seeds = stage<T>(seeds, problem.normalize, centres, nullptr, bad_seed);
  if (staged_seeds != centres && seeds.count) memcpy(centres, staged_seeds, sizeof(T) * size_t(seeds.count * stride));

  // Measures the points of a chunk that `keep` names against centres [first, last); each point is read once for all.
  const auto approach = [&](int64_t c, int64_t begin, int64_t end, int64_t first, int64_t last, const auto& keep) {
    int32_t kept[kChunkElements / kSumLanes];  // relative to begin
    int64_t count = 0;
    for (int64_t i = begin; i < end; ++i) {
      kept[count] = int32_t(i - begin);
      count += keep(i);
    }
    for (int64_t j = 0; j < count; j += kBlock) {
      Block<T> block;
      block.size = int(min(kBlock, count - j));
      for (int r = 0; r < block.size; ++r) {
        if (j + r + ahead < count) prefetch(points.address(begin + kept[j + r + ahead]), row_bytes);
        block.ids[r] = begin + kept[j + r];
        block.rows[r] = points.row(block.ids[r], row_buffer(c) + r * stride);
      }
      for (int64_t centre = first; centre < last; ++centre) segment.approach(block, centres + centre * stride, centre);
    }
    best[c] = segment.farthest(begin, end);
  };
  const auto look_at_chunks = [&] {
    for_each_chunk([&](int64_t c, int64_t begin, int64_t end) { best[c] = segment.farthest(begin, end); });
  };
  const auto start = [&] {
    for (int64_t i = 0; i < n; ++i) nearest[i] = T(__builtin_inf()), owner[i] = 0;
  };
  const auto always = [](int64_t) { return true; };

  if (seeds.count == 0) {
    look_at_chunks();
  } else {
    start();
    for_each_chunk([&](int64_t c, int64_t begin, int64_t end) { approach(c, begin, end, 0, seeds.count, always); });
  }
  pick_greedily<T>(
      problem, s, segment,
      [&](int64_t point, int64_t i) {
        const int64_t id = seeds.count + i;
        T* centre = centres + id * stride;
        const T* v = points.row(point, centre);
        if (v != centre) memcpy(centre, v, sizeof(T) * size_t(stride));
        if (id == 0) start();
        nearest[point] = T(-1);
        for (int64_t c = 0; c < id; ++c)
          safe[c] = id < n ? safe_distance(squared_distance(centres + c * stride, centre, stride), stride) : T(0);
        safe[id] = T(0);
        for_each_chunk([&](int64_t c, int64_t begin, int64_t end) {
          if (id == 0) return approach(c, begin, end, id, id + 1, always);
          approach(c, begin, end, id, id + 1, [&](int64_t j) { return !(nearest[j] < safe[owner[j]]); });
        });
      },
      [&] {
        Farthest<T> farthest;
        for (int64_t c = 0; c < chunks; ++c) farthest.join(best[c].distance, best[c].index);
        return farthest;
      });
}

}  // namespace k_center
}  // namespace CCP_CAPABILITY
}  // namespace ccp
