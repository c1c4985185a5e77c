// k-center in all segments by one launch: a warp or a block on each.
//
// Each point belongs to a quad of threads (arithmetic.cuh): these alone read it while it is no centre, and one of them
// alone keeps track of its nearest centre. The group shares the centre of the moment and the candidates for the next.
#pragma once

#include "kernels/cuda/farthest_points/group.cuh"
#include "kernels/cuda/farthest_points/job.cuh"

namespace ccp {
namespace cuda {
namespace k_center {

// A segment's points, copied to shared memory.
template <class F>
struct StagedPoints {
  using Rows = F;
  using T = typename F::T;
  const Job& job;
  int64_t begin;
  T* rows;     // [count, stride]
  T* nearest;  // [count]

  CCP_DEVICE T open(int64_t i, bool ranked, bool absent) const {
    return stage(raw_row<F>(job, job.points, begin + i), job.normalize, ranked, absent, rows + i * job.stride);
  }
  CCP_DEVICE StagedRow<T> point(int64_t i) const { return {rows + i * job.stride}; }
  CCP_DEVICE const T* centre(int64_t i, T*) const { return rows + i * job.stride; }
};

// A segment's points, read from global memory each time.
template <class F>
struct StreamedPoints {
  using Rows = F;
  using T = typename F::T;
  const Job& job;
  int64_t begin;
  T* nearest;

  CCP_DEVICE T open(int64_t i, bool ranked, bool absent) const {
    return measure_point<F>(job, begin + i, ranked, absent).rank;
  }
  CCP_DEVICE Row<F> point(int64_t i) const { return scaled_point<F>(job, begin + i); }
  CCP_DEVICE const T* centre(int64_t i, T* copy) const {
    const Row<F> row = point(i);
    for (int d = kQuad * int(threadIdx.x); d < job.dim; d += kQuad * kThreads) store(copy + d, row.four(d));
    __syncthreads();
    return copy;
  }
};

// Brings all points up to date with some centres. Returns this thread's candidate.
template <int kCentres, class Points, class T>
CCP_DEVICE Farthest<T> approach_all(const Job& job, const Group<T>& group, const Points& points, int64_t count,
                                    const T* centres) {
  Farthest<T> best;
  for_each_point(group, count, [&](int64_t i, bool absent) {
    const bool keeps = member_of_quad() == 0 && !absent;
    T nearest = keeps ? points.nearest[i] : T(0);
    uint32_t owner = 0;  // not wanted
    approach<kCentres>(points.point(i), centres, job.stride, job.dim, 0, nearest, owner);
    if (!keeps) return;
    points.nearest[i] = nearest;
    best.join(nearest, i);
  });
  return best;
}

// `centres` has room for kSeedBatch vectors, or for as many as there are seeds if these are fewer.
template <class Points, class T>
CCP_DEVICE void select_from(const Job& job, const Segment& segment, Group<T>& group, const Points& points, T* centres) {
  const int64_t count = segment.points.count;
  const Span seeds = segment.seeds;
  if (count == 0) return fill_up<T>(job, segment.index, 0, group.thread(), group.threads());

  Farthest<T> best;
  for_each_point(group, count, [&](int64_t i, bool absent) {
    const T rank = points.open(i, seeds.count == 0, absent);
    if (member_of_quad() != 0 || absent) return;
    points.nearest[i] = rank == kUnusable<T> ? rank : infinity<T>();
    best.join(rank, i);
  });

  for (int64_t first = 0; first < seeds.count; first += kSeedBatch) {
    const int batch = seeds.count - first < kSeedBatch ? int(seeds.count - first) : kSeedBatch;
    if (first > 0) CCP_SYNC(group);  // the last batch is done with
    if (group.warp() == group.last_warp()) {
      const int quad = lane_of_thread() / kQuad;
      const int c = quad < batch ? quad : 0;
      stage_seed<typename Points::Rows>(job, seeds.begin + first + c, quad >= batch, centres + c * job.stride);
    }
    CCP_SYNC(group);
    if (batch == kSeedBatch) {
      best = approach_all<kSeedBatch>(job, group, points, count, centres);
    } else {
      for (int c = 0; c < batch; ++c) best = approach_all<1>(job, group, points, count, centres + c * job.stride);
    }
  }

  const int64_t picks = job.k < count ? job.k : count;
  int64_t* indices = job.indices + segment.index * job.k;
  T* radii = static_cast<T*>(job.radii) + segment.index * job.k;
  const bool writes = group.thread() == 0;
  Farthest<T> next = farthest_in_group(group, best);
  for (int64_t i = 0; i < picks; ++i) {
    if (writes) indices[i] = points.begin + next.index;
    if (group.thread() == int(next.index & (group.quads() - 1)) * kQuad) points.nearest[next.index] = kPicked<T>;
    best = approach_all<1>(job, group, points, count, points.centre(next.index, centres));
    next = farthest_in_group(group, best);
    if (writes) radii[i] = radius_of(next);
  }
  fill_up<T>(job, segment.index, picks, group.thread(), group.threads());
}

// The launch ----------------------------------------------------------------------------------------------------------

// Where a segment's points (from 0), seeds and `nearest` lie in shared memory, in numbers; the next may follow at
// `end`.
struct Room {
  int64_t centres, nearest, end;
};

CCP_HD Room room_of(int64_t points, int64_t seeds, int64_t stride) {
  const int64_t centres = points * stride;
  const int64_t nearest = centres + (seeds < kSeedBatch ? seeds : kSeedBatch) * stride;
  return {centres, nearest, nearest + (points + kSumLanes - 1) / kSumLanes * kSumLanes};
}

// Calls visit(w, segment, room, place) for the first `count` segments of a block, w counting them. Where warps work
// side by side, `place` says where in the pool a segment lies, as long as they fit one behind the other; -1: nowhere,
// this one is for the whole block, as are those much larger than the average, for which other warps would have to wait.
template <class Visit>
CCP_DEVICE void for_each_segment(const Job& job, int segments_per_block, int count, int64_t pool_size,
                                 const Visit& visit) {
  const int64_t begin = int64_t(blockIdx.x) * segments_per_block;
  int64_t taken = 0;
  for (int w = 0; w < count && begin + w < job.segments; ++w) {
    const Segment segment = segment_of(job, begin + w);
    if (is_large(job, segment)) continue;
    const Room room = room_of(segment.points.count, segment.seeds.count, job.stride);
    const bool is_usual = segments_per_block > 1 && room.end <= 2 * pool_size / segments_per_block;
    const bool fits = is_usual && room.end <= pool_size - taken;
    visit(w, segment, room, fits ? taken : -1);
    if (fits) taken += room.end;
  }
}

// Dynamic shared memory: kBestBytes, then the pool of pool_size numbers, which holds kSeedBatch vectors at least.
template <class F>
__global__ void __launch_bounds__(kThreads, sizeof(typename F::T) == 4 ? 2 : 1)
    select_segments(const Job job, int segments_per_block, int64_t pool_size) {
  using T = typename F::T;
  CCP_SHARED(bytes);
  T* pool = reinterpret_cast<T*>(bytes + kBestBytes);
  const int warp = warp_of_thread();

  // First the segments that warps take side by side, then the others.
  for (int round = segments_per_block > 1 ? 0 : 1; round < 2; ++round) {
    Group<T> group = round == 0 ? one_warp<T>() : whole_block<T>(bytes);
    const int count = round == 0 && warp < segments_per_block ? warp + 1 : segments_per_block;
    const auto visit = [&](int w, const Segment& segment, const Room& room, int64_t place) {
      if (group.is_block ? place >= 0 : place < 0 || w != warp) return;
      T* here = pool + (group.is_block ? 0 : place);
      const int64_t first = segment.points.begin;
      if (room.end <= pool_size)
        select_from(job, segment, group, StagedPoints<F>{job, first, here, here + room.nearest}, here + room.centres);
      else
        select_from(job, segment, group, StreamedPoints<F>{job, first, static_cast<T*>(job.nearest) + first}, here);
    };
    for_each_segment(job, segments_per_block, count, pool_size, visit);
    if (round == 0) __syncthreads();
  }
}

}  // namespace k_center
}  // namespace cuda
}  // namespace ccp
