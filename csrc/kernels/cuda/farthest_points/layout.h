// How scratch memory is cut up.
#pragma once

#include "kernels/cuda/farthest_points/large.cuh"
#include "kernels/cuda/workspace.h"

namespace ccp {
namespace cuda {
namespace k_center {

// Numbers from vector to vector. An odd multiple of 16: rows that are read at once lie in different banks.
inline int64_t stride_of(int64_t dim) { return (dim + 16 + 31) / 32 * 32 - 16; }

struct Layout {
  Job job;
  LargeJob large;       // max_slots = 0: no launches for large segments
  size_t zeroed_bytes;  // from large.counts on
  size_t bytes;
};

template <class T>
Layout lay_out(const FarthestPointsProblem& p, const FarthestPointsPlan& plan, void* memory) {
  Workspace workspace(memory);
  Layout out{};
  const int64_t rows = p.points.rows;
  Job& job = out.job;
  job.points = p.points;
  job.seeds = p.seeds;
  job.segments = p.segments;
  job.largest_segment = p.largest_segment;
  job.k = p.k;
  job.dim = int(p.dim);
  job.stride = stride_of(p.dim);
  job.normalize = p.normalize;
  job.pad = p.pad;
  job.indices = p.indices;
  job.radii = p.radii;
  job.large_elements = plan.large_elements;
  job.nearest = workspace.take<T>(rows);
  if (p.normalize != Normalize::kNone) job.scales = workspace.take<T>(rows);
  if (plan.large_elements != FarthestPointsPlan::kNone) {
    const auto min = [](int64_t a, int64_t b) { return a < b ? a : b; };
    LargeJob& large = out.large;
    large.rows_per_chunk = plan.rows_per_chunk;
    large.max_slots = min(p.segments, plan.large_elements > 0 ? rows * p.dim / plan.large_elements : rows);
    large.max_chunks = chunks_of(rows, plan.rows_per_chunk) + large.max_slots;
    large.most_picks = min(p.k, p.largest_segment);
    large.max_picks = min(rows, large.max_slots * large.most_picks);
    const int64_t counts = sizeof(LargeJob::Counts) / sizeof(int64_t);
    int64_t* zeroed = workspace.take<int64_t>(counts + large.max_chunks);
    out.zeroed_bytes = sizeof(int64_t) * size_t(counts + large.max_chunks);
    large.counts = reinterpret_cast<LargeJob::Counts*>(zeroed);
    large.slot_of_chunk = zeroed + counts;
    large.slots = workspace.take<LargeJob::Slot>(large.max_slots);
    large.best = workspace.take<Farthest<T>>(large.max_chunks);
    large.owner = workspace.take<uint32_t>(rows);
    large.centres = workspace.take<T>((p.seeds.rows + large.max_picks) * job.stride);
    large.safe = workspace.take<T>(p.seeds.rows + large.max_picks);
  }
  out.bytes = workspace.bytes();
  return out;
}

}  // namespace k_center
}  // namespace cuda
}  // namespace ccp
