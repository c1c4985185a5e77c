// One segment: its vectors in memory, the distance of each point to its nearest centre, and the greedy loop.
#pragma once

#include "common/convert.h"
#include "kernels/cpu/farthest_points.h"
#include "kernels/cpu/farthest_points_arithmetic.h"

namespace ccp {
namespace CCP_CAPABILITY {
namespace k_center {

// The lowest row that cannot be compared, found by any thread.
struct BadRow {
  int64_t row = INT64_MAX;

  void report(int64_t found) {
    int64_t seen = __atomic_load_n(&row, __ATOMIC_RELAXED);
    while (found < seen && !__atomic_compare_exchange_n(&row, &seen, found, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
  }
  int64_t result() const { return row == INT64_MAX ? -1 : row; }
};

// The vectors of one segment. Those whose components already lie in memory as they are computed with are not copied.
template <class T>
struct Vectors {
  const void* data;
  Dtype dtype;
  int64_t first;  // row of data
  int64_t count;
  int64_t dim;
  int64_t stride;
  const T* scale;  // [count]; nullptr: 1

  bool in_place() const { return dtype_bytes(dtype) == int64_t(sizeof(T)) && dim == stride && !scale; }

  const T* row(int64_t i, T* buffer) const {
    const int64_t begin = (first + i) * dim;
    if (in_place()) return static_cast<const T*>(data) + begin;
    read_elements(data, dtype, begin, dim, buffer);
    for (int64_t d = dim; d < stride; ++d) buffer[d] = T(0);
    if (scale) multiply(buffer, scale[i]);
    return buffer;
  }

  void multiply(T* v, T factor) const {
    for (int64_t d = 0; d < stride; d += kLanes<T>) store(v + d, load(v + d) * factor);
  }

  int64_t row_bytes() const { return dim * dtype_bytes(dtype); }
  uintptr_t address(int64_t i) const {
    return reinterpret_cast<uintptr_t>(data) + uintptr_t((first + i) * row_bytes());
  }
};

template <class T>
Vectors<T> segment_of(const RaggedVectors& side, int64_t s, int64_t dim) {
  const int64_t begin = side.offsets[s];
  return {side.data, side.dtype, begin, side.offsets[s + 1] - begin, dim, round_up(dim, kSumLanes), nullptr};
}

// Hardware prefetchers do not follow rows as short as these, and loads alone leave the core waiting: without this the
// streams below run at a third of memory's bandwidth.
inline void prefetch(uintptr_t begin, int64_t bytes) {
  for (int64_t b = 0; b < bytes; b += 64) __builtin_prefetch(reinterpret_cast<const void*>(begin + uintptr_t(b)));
}

// Copies a segment's vectors to `out` [count, stride], normalised; ranks them for the first pick if `rank` is given.
// Returns where they are: vectors that need none of this stay in place.
template <class T>
const T* stage(const Vectors<T>& from, Normalize normalize, T* out, T* rank, BadRow* bad) {
  const int64_t stride = from.stride;
  if (from.in_place() && normalize == Normalize::kNone && !rank) return from.row(0, nullptr);
  for (int64_t i = 0; i < from.count; ++i) {
    T* v = out + i * stride;
    const T* read = from.row(i, v);
    if (read != v) memcpy(v, read, sizeof(T) * size_t(stride));
    if (normalize == Normalize::kNone && !rank) continue;
    const T squares = squared_norm(v, stride);
    T scale(1);
    if (normalize != Normalize::kNone) {
      scale = normalizing_scale(normalize, v, squares, from.dim);
      if (scale != T(1)) from.multiply(v, scale);
    }
    if (squares != squares || scale != scale) bad->report(from.first + i);
    if (rank) rank[i] = norm_rank(normalize, squares, scale);
  }
  return out;
}

template <class T>
struct Farthest {
  T distance = T(-1);  // squared, to the nearest centre
  int64_t index = -1;

  void join(T other, int64_t i) {
    if (other > distance) distance = other, index = i;
  }
};

template <class T>
struct Block {
  const T* rows[kBlock];
  int64_t ids[kBlock];
  int size = 0;
};

// What the two regimes share: for each point its squared distance to the nearest centre so far, or -1 once it is
// picked.
template <class T>
struct Segment {
  Vectors<T> points;
  int64_t first_seed;
  int64_t seeds;
  T* nearest;      // [points.count]
  int32_t* owner;  // [points.count] number of the nearest centre; nullptr: not wanted
  BadRow* bad_point;
  BadRow* bad_seed;

  // `id` counts the centres: first the seeds, then the picks.
  void approach(const Block<T>& block, const T* centre, int64_t id) const {
    switch (block.size) {
      case 4:
        return approach_with<4>(block, centre, id);
      case 3:
        return approach_with<3>(block, centre, id);
      case 2:
        return approach_with<2>(block, centre, id);
      case 1:
        return approach_with<1>(block, centre, id);
    }
  }

  template <int R>
  void approach_with(const Block<T>& block, const T* centre, int64_t id) const {
    T distance[R];
    squared_distances<T, R>(centre, block.rows, points.stride, distance);
    T total = T(0);  // NaN if any distance is: they are not negative
    for (int r = 0; r < R; ++r) total += distance[r];
    if (__builtin_expect(total != total, 0))
      for (int r = 0; r < R; ++r) distance[r] = resolve(distance[r], block.rows[r], block.ids[r], centre, id);
    if (owner)
      for (int r = 0; r < R; ++r)
        if (distance[r] < nearest[block.ids[r]]) owner[block.ids[r]] = int32_t(id);
    for (int r = 0; r < R; ++r) {
      T& least = nearest[block.ids[r]];
      least = distance[r] < least ? distance[r] : least;
    }
  }

  T resolve(T distance, const T* row, int64_t i, const T* centre, int64_t id) const {
    if (distance == distance) return distance;
    distance = squared_distance_beyond_finite(row, centre, points.stride);
    if (distance != distance) {
      if (holds_nan(row, points.stride))
        bad_point->report(points.first + i);
      else if (id < seeds)
        bad_seed->report(first_seed + id);
    }
    return distance;
  }

  Farthest<T> farthest(int64_t begin, int64_t end) const {
    Farthest<T> best;
    for (int64_t i = begin; i < end; ++i) best.join(nearest[i], i);
    return best;
  }
};

// Picks and radii of a segment into row s of the output. `pick(i)` makes point i a centre; `farthest()` looks again.
template <class T, class Pick, class Look>
void pick_greedily(const FarthestPointsProblem& problem, int64_t s, const Segment<T>& segment, const Pick& pick,
                   const Look& farthest) {
  int64_t* indices = problem.indices + s * problem.k;
  T* radii = static_cast<T*>(problem.radii) + s * problem.k;
  const int64_t picks = min(problem.k, segment.points.count);
  Farthest<T> next = picks ? farthest() : Farthest<T>{};
  for (int64_t i = 0; i < picks; ++i) {
    // Only NaN can leave a point unranked; the segment is then reported as bad, any unpicked index will do.
    const int64_t point = next.index >= 0 ? next.index : 0;
    indices[i] = segment.points.first + point;
    pick(point, i);
    next = farthest();
    radii[i] = next.distance > 0 ? sqrt(next.distance) : T(0);
  }
  for (int64_t i = picks; i < problem.k; ++i) {
    indices[i] = picks == 0 || problem.pad ? -1 : indices[i - picks];
    radii[i] = T(0);
  }
}

}  // namespace k_center
}  // namespace CCP_CAPABILITY
}  // namespace ccp
