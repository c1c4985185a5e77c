// The launches for points of one element type.
#pragma once

#include "kernels/cuda/farthest_points/launch.h"
#include "kernels/cuda/farthest_points/layout.h"
#include "kernels/cuda/farthest_points/segments.cuh"

namespace ccp {
namespace cuda {
namespace k_center {

inline dim3 grid_of(int64_t blocks, int64_t parts = 1) { return dim3(unsigned(blocks), unsigned(parts)); }

template <class F>
cudaError_t launch_segments(const Job& job, const FarthestPointsPlan& plan, cudaStream_t stream) {
  const auto kernel = select_segments<F>;
  const cudaError_t error = allow_shared_memory(kernel, size_t(plan.shared_bytes));
  if (error != cudaSuccess) return error;
  const int64_t blocks = (job.segments + plan.segments_per_block - 1) / plan.segments_per_block;
  const int64_t pool_size = (plan.shared_bytes - kBestBytes) / int64_t(sizeof(typename F::T));
  CCP_LAUNCH(kernel, grid_of(blocks), kThreads, size_t(plan.shared_bytes), stream, job, plan.segments_per_block,
             pool_size);
  return cudaGetLastError();
}

template <class F>
cudaError_t launch_large(const Layout& layout, cudaStream_t stream) {
  const Job& job = layout.job;
  const LargeJob& large = layout.large;
  const cudaError_t error = cudaMemsetAsync(large.counts, 0, layout.zeroed_bytes, stream);
  if (error != cudaSuccess) return error;
  CCP_LAUNCH(list_large<typename F::T>, grid_of((job.segments + kThreads - 1) / kThreads), kThreads, 0, stream, job,
             large);
  if (job.seeds.rows > 0)
    CCP_LAUNCH(stage_seeds<F>, grid_of((job.seeds.rows + kQuads - 1) / kQuads), kThreads, 0, stream, job, large);
  CCP_LAUNCH(open_chunks<F>, grid_of(large.max_chunks), kThreads, kBestBytes, stream, job, large);
  const int64_t rows = large.rows_per_chunk < job.largest_segment ? large.rows_per_chunk : job.largest_segment;
  const size_t list_bytes = sizeof(int) * size_t(kWarps * rows_of_warp(rows));
  for (int64_t i = 0; i <= large.most_picks; ++i) {
    const int64_t wanted = 1 + i / (4 * kQuads), parts = wanted < 16 ? wanted : 16;
    CCP_LAUNCH(choose<F>, grid_of(large.max_slots, parts), kThreads, kBestBytes, stream, job, large, i);
    if (i < large.most_picks)
      CCP_LAUNCH(approach_chunks<F>, grid_of(large.max_chunks), kThreads, kBestBytes + list_bytes, stream, job, large,
                 i);
  }
  return cudaGetLastError();
}

template <class F>
cudaError_t launch_format(const Layout& layout, const FarthestPointsPlan& plan, cudaStream_t stream) {
  const cudaError_t error = launch_segments<F>(layout.job, plan, stream);
  if (error != cudaSuccess || layout.large.max_slots == 0) return error;
  return launch_large<F>(layout, stream);
}

// Whether four elements may be loaded at once.
inline bool is_aligned(const RaggedVectors& vectors, int64_t dim) {
  const uintptr_t bytes = dtype_bytes(vectors.dtype) == 2 ? 8 : 16;
  return dim % kQuad == 0 && reinterpret_cast<uintptr_t>(vectors.data) % bytes == 0;
}

template <class Element>
cudaError_t launch(const FarthestPointsProblem& problem, const FarthestPointsPlan& plan, void* workspace,
                   cudaStream_t stream) {
  using T = typename Format<Element, false>::T;
  const Layout layout = lay_out<T>(problem, plan, workspace);
  if constexpr (sizeof(Element) < 8)
    if (is_aligned(problem.points, problem.dim) && is_aligned(problem.seeds, problem.dim))
      return launch_format<Format<Element, true>>(layout, plan, stream);
  return launch_format<Format<Element, false>>(layout, plan, stream);
}

}  // namespace k_center
}  // namespace cuda
}  // namespace ccp
