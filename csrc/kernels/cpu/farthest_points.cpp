// Two regimes share the arithmetic below. A small segment (CCP: a handful of points of one class) is copied into scratch
// memory that stays in cache and selected from by one thread, many segments at a time. A large one is streamed from
// memory chunk by chunk, all threads on one segment, and skips points that the triangle inequality rules out.
//
// Compiled with -ffp-contract=off (CMakeLists.txt): the header fixes every rounding.
#include "kernels/cpu/farthest_points.h"

#include "common/buffer.h"
#include "common/convert.h"
#include "common/simd.h"

namespace ccp {
namespace CCP_CAPABILITY {
namespace {

constexpr int kSumLanes = 16;  // fixed by the header; a vector register holds 2 to 16 of them
constexpr int kBlock = 4;      // points measured against a centre at a time: enough independent sums to hide latency
constexpr int64_t kSmallSegment = 1 << 17;  // elements of points and seeds: half a core's L2 cache in float
constexpr int64_t kChunkElements = 1 << 16;
constexpr int64_t kPrefetchBytes = 1 << 12;  // how far ahead of the arithmetic
constexpr int64_t kTasks = 256;  // groups of small segments; more than the threads of any machine in use

CCP_HD int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
CCP_HD int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }
CCP_HD int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// Distances ------------------------------------------------------------------------------------------------------------

// The header's tree over 16 lanes in memory. Reading them back four at a time beats taking a register apart.
template <class T>
CCP_HD T fold_lanes(const T* lanes) {
  typedef T Four __attribute__((vector_size(4 * sizeof(T))));
  Four part[4];
  memcpy(part, lanes, sizeof(part));
  part[0] = (part[0] + part[2]) + (part[1] + part[3]);
  T sum[4];
  memcpy(sum, part, sizeof(sum));
  return (sum[0] + sum[2]) + (sum[1] + sum[3]);
}

// out[r] = ‖centre − rows[r]‖². Vectors are padded with zeros to `stride` components, a multiple of kSumLanes. One pass
// over the components per register's worth of lanes: the block is in L1, and narrow register files do not spill.
template <class T, int R>
CCP_HD void squared_distances(const T* centre, const T* const* rows, int64_t stride, T* out) {
  alignas(64) T lanes[R][kSumLanes];
  for (int first = 0; first < kSumLanes; first += kLanes<T>) {
    Vec<T> sum[R] = {};
    for (int64_t d = first; d < stride; d += kSumLanes) {
      const Vec<T> c = load(centre + d);
      for (int r = 0; r < R; ++r) {
        const Vec<T> difference = c - load(rows[r] + d);
        sum[r] = sum[r] + difference * difference;
      }
    }
    for (int r = 0; r < R; ++r) store(lanes[r] + first, sum[r]);
  }
  for (int r = 0; r < R; ++r) out[r] = fold_lanes(lanes[r]);
}

template <class T>
CCP_HD T squared_distance(const T* a, const T* b, int64_t stride) {
  T out;
  squared_distances<T, 1>(a, &b, stride, &out);
  return out;
}

template <class T>
CCP_HD T squared_norm(const T* v, int64_t stride) {
  alignas(64) T lanes[kSumLanes];
  for (int first = 0; first < kSumLanes; first += kLanes<T>) {
    Vec<T> sum{};
    for (int64_t d = first; d < stride; d += kSumLanes) sum = sum + load(v + d) * load(v + d);
    store(lanes + first, sum);
  }
  return fold_lanes(lanes);
}

// For a distance that came out as NaN: equal components, infinite ones too, are no distance apart. Still NaN only where a
// component is.
template <class T>
T squared_distance_beyond_finite(const T* a, const T* b, int64_t stride) {
  T lanes[kSumLanes] = {};
  for (int64_t d = 0; d < stride; ++d) {
    const T difference = a[d] == b[d] ? T(0) : a[d] - b[d];
    lanes[d % kSumLanes] += difference * difference;
  }
  return fold_lanes(lanes);
}

template <class T>
bool holds_nan(const T* v, int64_t stride) {
  for (int64_t d = 0; d < stride; ++d)
    if (v[d] != v[d]) return true;
  return false;
}

// Reading the caller's vectors -----------------------------------------------------------------------------------------

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
  uintptr_t address(int64_t i) const { return reinterpret_cast<uintptr_t>(data) + uintptr_t((first + i) * row_bytes()); }
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

// NaN where the vector has no finite norm.
template <class T>
T normalizing_scale(Normalize normalize, const T* v, T squares, int64_t dim) {
  double exact = squares;
  if (!(exact > 1e-30 && exact < 1e30)) {
    exact = 0;
    for (int64_t d = 0; d < dim; ++d) exact += double(v[d]) * double(v[d]);
  }
  const double length = ::sqrt(exact);
  if (!(length <= 1.7976931348623157e308)) return T(__builtin_nan(""));
  if (normalize == Normalize::kBall) return length > 1 ? T(1 / length) : T(1);
  return length > 1e-12 ? T(1 / length) : T(0);
}

// ‖v‖² after normalisation, ranked without the rounding of a scaled vector: all vectors on the sphere are equal.
template <class T>
T norm_rank(Normalize normalize, T squares, T scale) {
  if (normalize == Normalize::kUnit) return scale > 0 ? T(1) : T(0);
  if (normalize == Normalize::kBall) return scale < 1 || squares > 1 ? T(1) : squares;
  return squares;
}

// Selecting from one segment -------------------------------------------------------------------------------------------

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

// What the two regimes share: for each point its squared distance to the nearest centre so far, or -1 once it is picked.
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
      if (holds_nan(row, points.stride)) bad_point->report(points.first + i);
      else if (id < seeds) bad_seed->report(first_seed + id);
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

// Small segments -------------------------------------------------------------------------------------------------------

// Copies a segment's vectors to `out` [count, stride], normalised, and if `rank` is given ranks them for the first pick.
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
int64_t scratch_of(int64_t points, int64_t seeds, int64_t dim) {
  return (points + seeds) * round_up(dim, kSumLanes) + round_up(points, kSumLanes);
}

// Brings the next segment into cache while this one is worked on, some lines with every block: all at once they would
// fill the core's miss buffers and stall it.
struct NextSegment {
  uintptr_t begin = 0;
  int64_t left = 0;
  int64_t step = 0;

  template <class T>
  NextSegment(const Vectors<T>& next, int64_t blocks)
      : begin(next.address(0)), left(min(next.count * next.row_bytes(), 1 << 14)), step(round_up(left / max(blocks, 1) + 1, 64)) {}

  void advance() {
    const int64_t bytes = min(step, left);
    prefetch(begin, bytes);
    begin += uintptr_t(bytes);
    left -= bytes;
  }
};

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

  const int64_t after = min(s + 1, problem.segments - 1);
  const int64_t blocks = (n + kBlock - 1) / kBlock * (segment.seeds + min(problem.k, n));
  NextSegment next_points(segment_of<T>(problem.points, after, problem.dim), blocks);
  NextSegment next_seeds(segment_of<T>(problem.seeds ? *problem.seeds : problem.points, after, problem.dim), blocks);
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

// Large segments -------------------------------------------------------------------------------------------------------

// The triangle inequality: ‖x − new‖ >= ‖old − new‖ − ‖x − old‖, so a point x nearer to its centre `old` than half the way
// from there to the new one keeps it. Returns the squared distance below which that holds for the computed, rounded
// numbers too; 0 where rounding could not be bounded (underflow, overflow).
template <class T>
T safe_distance(T between_centres, int64_t stride) {
  constexpr T kEpsilon = sizeof(T) == 4 ? T(1.2e-7) : T(2.3e-16);
  constexpr T kTiny = sizeof(T) == 4 ? T(1e-30) : T(1e-290);
  constexpr T kHuge = sizeof(T) == 4 ? T(1e38) : T(1e307);
  if (!(between_centres > kTiny && between_centres < kHuge)) return T(0);
  // A squared distance is a sum of stride / 16 + 4 roundings at most one after another, and of two before.
  const T relative_error = T(stride / kSumLanes + 8) * kEpsilon;
  return between_centres * (T(0.25) - 4 * relative_error);
}

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
  if (staged_seeds != centres && seeds.count)
    memcpy(centres, staged_seeds, sizeof(T) * size_t(seeds.count * stride));

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

// Both -----------------------------------------------------------------------------------------------------------------

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
        scratch = max(scratch, scratch_of<T>(offsets[s + 1] - offsets[s], seeds_before(s + 1) - seeds_before(s), problem.dim));
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

}  // namespace

FarthestPointsStatus farthest_points(const FarthestPointsProblem& problem) {
  return problem.points.dtype == Dtype::kFloat64 ? select_all<double>(problem) : select_all<float>(problem);
}

}  // namespace CCP_CAPABILITY
}  // namespace ccp
