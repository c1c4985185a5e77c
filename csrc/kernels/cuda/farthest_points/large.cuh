// k-center in large segments, the whole GPU on each: chunks of rows, a block for each, and two launches per pick.
// choose() joins the chunks' candidates; approach_chunks() measures their points against the new centre, but for those
// that the triangle inequality rules out (safe_distance in kernels/farthest_points.h): of these it reads eight bytes
// instead of all components.
#pragma once

#include "kernels/cuda/farthest_points/group.cuh"
#include "kernels/cuda/farthest_points/job.cuh"

namespace ccp {
namespace cuda {
namespace k_center {

// Large segments get numbers of their own, slots, and runs of chunks and of places for their picks. list_large() gives
// them out in any order: no result depends on it.
struct LargeJob {
  int64_t rows_per_chunk;
  int64_t max_slots, max_chunks, max_picks;  // of all segments together
  int64_t most_picks;                        // of one segment
  struct Counts {
    unsigned long long slots, chunks, picks;
  }* counts;
  struct Slot {
    int64_t segment;  // -1: none after all
    int64_t first_chunk, first_pick;
  }* slots;                // [max_slots]
  int64_t* slot_of_chunk;  // [max_chunks] slot + 1; 0: no such chunk
  void* best;              // [max_chunks] Farthest<T>
  void* centres;           // [seeds.rows + max_picks, stride] all seeds, then all picks
  void* safe;              // [seeds.rows + max_picks] points nearer to a centre than this keep it
  uint32_t* owner;         // [points.rows] nearest centre
};

CCP_HD int64_t chunks_of(int64_t rows, int64_t rows_per_chunk) { return (rows + rows_per_chunk - 1) / rows_per_chunk; }
CCP_DEVICE int64_t picks_of(const Job& job, const Segment& segment) {
  return job.k < segment.points.count ? job.k : segment.points.count;
}

struct LargeSegment {
  Segment segment;
  int64_t first_chunk;
  int64_t first_seed, first_pick;  // among all centres

  // Where its centre `id` is, seeds before picks.
  CCP_DEVICE int64_t centre(int64_t id) const {
    return id < segment.seeds.count ? first_seed + id : first_pick + (id - segment.seeds.count);
  }
};

CCP_DEVICE LargeSegment large_segment(const Job& job, const LargeJob::Slot& slot) {
  const Segment segment = segment_of(job, slot.segment);
  return {segment, slot.first_chunk, segment.seeds.begin, job.seeds.rows + slot.first_pick};
}

struct Chunk {
  LargeSegment of;
  int64_t begin, count;  // rows of the segment; none where this block has no chunk
};

CCP_DEVICE Chunk chunk_of_block(const Job& job, const LargeJob& large) {
  const int64_t slot = large.slot_of_chunk[blockIdx.x] - 1;
  if (slot < 0) return {};
  const LargeSegment of = large_segment(job, large.slots[slot]);
  const int64_t begin = (int64_t(blockIdx.x) - of.first_chunk) * large.rows_per_chunk;
  const int64_t left = of.segment.points.count - begin;
  return {of, begin, left < large.rows_per_chunk ? left : large.rows_per_chunk};
}

// A thread for each segment. Counts and slot_of_chunk are zero before.
template <class T>
__global__ void __launch_bounds__(kThreads) list_large(const Job job, const LargeJob large) {
  const int64_t s = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (s >= job.segments) return;
  const Segment segment = segment_of(job, s);
  if (!is_large(job, segment)) return;
  const auto take = [](unsigned long long& count, int64_t n) {
    return int64_t(atomicAdd(&count, static_cast<unsigned long long>(n)));
  };
  const int64_t chunks = chunks_of(segment.points.count, large.rows_per_chunk), picks = picks_of(job, segment);
  const int64_t slot = take(large.counts->slots, 1);
  const int64_t chunk = take(large.counts->chunks, chunks), pick = take(large.counts->picks, picks);
  // Only where offsets overlap is there less room than segments need.
  const bool fits = chunk + chunks <= large.max_chunks && pick + picks <= large.max_picks;
  if (slot < large.max_slots) large.slots[slot] = {fits ? s : -1, chunk, pick};
  if (slot >= large.max_slots || !fits) return fill_up<T>(job, s, 0, 0, 1);
  for (int64_t c = 0; c < chunks; ++c) large.slot_of_chunk[chunk + c] = slot + 1;
}

// A warp for eight seeds.
template <class F>
__global__ void __launch_bounds__(kThreads, 2) stage_seeds(const Job job, const LargeJob large) {
  const int64_t row = (int64_t(blockIdx.x) * kThreads + threadIdx.x) / kQuad;
  const bool absent = row >= job.seeds.rows;
  const int64_t from = absent ? 0 : row;
  auto* to = static_cast<typename F::T*>(large.centres) + from * job.stride;
  stage_seed<F>(job, from, absent, to);
}

// Before the first pick: norms where they are wanted, and the distances to all seeds.
template <class F>
__global__ void __launch_bounds__(kThreads, 2) open_chunks(const Job job, const LargeJob large) {
  using T = typename F::T;
  CCP_SHARED(bytes);
  const Chunk chunk = chunk_of_block(job, large);
  if (chunk.count == 0) return;
  const int64_t seeds = chunk.of.segment.seeds.count;
  const int64_t first_row = chunk.of.segment.points.begin + chunk.begin;
  const uint32_t first_centre = uint32_t(chunk.of.centre(0));
  const T* centres = static_cast<const T*>(large.centres) + first_centre * job.stride;
  Group<T> block = whole_block<T>(bytes);
  Farthest<T> best;
  for_each_point(block, chunk.count, [&](int64_t j, bool absent) {
    const int64_t row = first_row + j;
    const Norm<T> norm = measure_point<F>(job, row, seeds == 0, absent);
    Row<F> point = raw_row<F>(job, job.points, row);
    point.scale = norm.scale;
    T nearest = norm.rank == kUnusable<T> ? norm.rank : infinity<T>();
    uint32_t owner = first_centre;
    int64_t c = 0;
    for (; c + kSeedBatch <= seeds; c += kSeedBatch)
      approach<kSeedBatch>(point, centres + c * job.stride, job.stride, job.dim, first_centre + c, nearest, owner);
    for (; c < seeds; ++c)
      approach<1>(point, centres + c * job.stride, job.stride, job.dim, first_centre + c, nearest, owner);
    if (absent || member_of_quad() != 0) return;
    static_cast<T*>(job.nearest)[row] = nearest;
    large.owner[row] = owner;
    best.join(seeds == 0 ? norm.rank : nearest, chunk.begin + j);
  });
  best = farthest_in_group(block, best);
  if (threadIdx.x == 0) static_cast<Farthest<T>*>(large.best)[blockIdx.x] = best;
}

// Pick i of every large segment, after the radius of the one before: writes it, copies its vector, and finds what its
// distances to the older centres save. Blocks (slot, part) share the older centres; part 0 does the rest.
template <class F>
__global__ void __launch_bounds__(kThreads, 2) choose(const Job job, const LargeJob large, int64_t i) {
  using T = typename F::T;
  CCP_SHARED(bytes);
  if (blockIdx.x >= large.counts->slots || large.slots[blockIdx.x].segment < 0) return;
  const LargeSegment of = large_segment(job, large.slots[blockIdx.x]);
  const int64_t s = of.segment.index, picks = picks_of(job, of.segment);
  if (i > picks) return;

  const Farthest<T>* candidates = static_cast<const Farthest<T>*>(large.best) + of.first_chunk;
  Group<T> block = whole_block<T>(bytes);
  Farthest<T> next;
  for (int64_t c = threadIdx.x; c < chunks_of(of.segment.points.count, large.rows_per_chunk); c += kThreads)
    next.join(candidates[c].distance, candidates[c].index);
  next = farthest_in_group(block, next);
  const bool writes = blockIdx.y == 0 && threadIdx.x == 0;
  if (writes && i > 0) static_cast<T*>(job.radii)[s * job.k + i - 1] = radius_of(next);
  if (i == picks) {
    if (blockIdx.y == 0) fill_up<T>(job, s, picks, threadIdx.x, kThreads);
    return;
  }

  const int64_t row = of.segment.points.begin + next.index;
  const int64_t id = of.segment.seeds.count + i, centre = of.centre(id);
  const Row<F> point = scaled_point<F>(job, row);
  T* centres = static_cast<T*>(large.centres);
  T* safe = static_cast<T*>(large.safe);
  if (writes) {
    job.indices[s * job.k + i] = row;
    static_cast<T*>(job.nearest)[row] = kPicked<T>;
    safe[centre] = T(0);  // before the next pick, only points without a centre ask for it
  }
  if (blockIdx.y == 0)
    for (int d = kQuad * int(threadIdx.x); d < job.dim; d += kQuad * kThreads)
      store(centres + centre * job.stride + d, point.four(d));
  for (int64_t first = int64_t(blockIdx.y) * kQuads; first < id; first += int64_t(gridDim.y) * kQuads) {
    const int64_t other = first + threadIdx.x / kQuad;
    const int64_t older = of.centre(other < id ? other : 0);
    T distance[1];
    squared_distances(point, centres + older * job.stride, job.stride, job.dim, distance);
    if (other < id && member_of_quad() == 0) safe[older] = generic::k_center::safe_distance(distance[0], job.stride);
  }
}

// The rows of a chunk are dealt out to warps 32 at a time; so many are a warp's at most.
CCP_HD int64_t rows_of_warp(int64_t rows) { return (rows + kThreads - 1) / kThreads * kWarp; }

// Measures the points that may be nearer to pick i than to all centres before. Each warp lists those of its rows, so
// that its quads have no gaps. Shared memory: kBestBytes, and the lists.
template <class F>
__global__ void __launch_bounds__(kThreads, 3) approach_chunks(const Job job, const LargeJob large, int64_t i) {
  using T = typename F::T;
  CCP_SHARED(bytes);
  const Chunk chunk = chunk_of_block(job, large);
  if (chunk.count == 0 || i >= chunk.of.segment.points.count) return;
  const int64_t first_row = chunk.of.segment.points.begin + chunk.begin;
  T* nearest = static_cast<T*>(job.nearest) + first_row;
  uint32_t* owner = large.owner + first_row;
  const T* safe = static_cast<const T*>(large.safe);
  Farthest<T> best;

  int* list = reinterpret_cast<int*>(bytes + kBestBytes) + warp_of_thread() * rows_of_warp(chunk.count);
  int listed = 0;
  for (int64_t first = warp_of_thread() * kWarp; first < chunk.count; first += kThreads) {
    const int64_t j = first + lane_of_thread();
    bool changes = false;
    if (j < chunk.count) {
      const T least = nearest[j];
      changes = !(least < safe[owner[j]]);
      if (!changes) best.join(least, chunk.begin + j);
    }
    const unsigned votes = __ballot_sync(kFullWarp, changes);
    if (changes) list[listed + __popc(votes & ((1u << lane_of_thread()) - 1))] = int(j);
    listed += __popc(votes);
  }
  __syncwarp();

  const int64_t centre = chunk.of.centre(chunk.of.segment.seeds.count + i);
  const T* vector = static_cast<const T*>(large.centres) + centre * job.stride;
  for_each_point(one_warp<T>(), listed, [&](int64_t e, bool absent) {
    const int j = list[e];
    const bool keeps = member_of_quad() == 0 && !absent;
    T least = keeps ? nearest[j] : T(0);
    uint32_t closest = keeps ? owner[j] : 0;
    approach<1>(scaled_point<F>(job, first_row + j), vector, job.stride, job.dim, uint32_t(centre), least, closest);
    if (!keeps) return;
    nearest[j] = least;
    owner[j] = closest;
    best.join(least, chunk.begin + j);
  });
  Group<T> block = whole_block<T>(bytes);
  best = farthest_in_group(block, best);
  if (threadIdx.x == 0) static_cast<Farthest<T>*>(large.best)[blockIdx.x] = best;
}

}  // namespace k_center
}  // namespace cuda
}  // namespace ccp
