// Chooses the launches, and cuts up the scratch memory.
#include "kernels/cuda/nearest_references.h"
#include "kernels/cuda/nearest_references/many.cuh"
#include "kernels/cuda/nearest_references/merge.cuh"
#include "kernels/cuda/nearest_references/one.cuh"
#include "kernels/cuda/workspace.h"

namespace ccp {
namespace cuda {

namespace {

constexpr size_t kMostSortBytes = 96 * 1024;  // of shared memory

struct Plan {
  nearest::Job job;
  nearest::MergeJob merge;
  int64_t blocks;
  size_t search_bytes, merge_bytes;  // of shared memory
  size_t bytes;
};

template <class T>
Plan make_plan(const NearestReferencesProblem& p, void* memory) {
  Workspace workspace(memory);
  const auto at_most = [](int64_t a, int64_t b) { return a < b ? a : b; };
  Plan plan{};
  nearest::Job& job = plan.job;
  job.anchors = items_of<T>(p.anchors, p.dim);
  job.references = items_of<T>(p.references, p.dim);
  job.dim = p.dim;
  job.k = at_most(p.k, p.references.count > 0 ? p.references.count : 1);
  job.normalize = p.normalize;
  job.arithmetic = {p.products, p.anchors.dtype};
  job.exclude_diagonal = p.exclude_diagonal;
  job.resident = owner_fits<T, nearest::kRows>(p.dim, nearest::Lists::kSharedBytes);
  job.row_tiles = divide_up(p.anchors.count, nearest::kRows);
  // A slice of fewer than some k references would hand on most of what it has.
  const int64_t worth = at_most(divide_up(p.references.count, kStreamed), divide_up(p.references.count, 8 * job.k));
  job.slices = slices_for(job.row_tiles, worth, p.multiprocessors);
  const int64_t works = job.row_tiles * job.slices;
  plan.blocks = p.k == 1 ? works : at_most(works, int64_t(p.multiprocessors) * kBlocksPerMultiprocessor);
  job.room = job.k + (job.k > kStreamed ? job.k : kStreamed) + kStreamed;
  job.lists = workspace.take<uint64_t>(p.k == 1 ? 0 : plan.blocks * nearest::kRows * job.room);
  job.found = workspace.take<uint64_t>(p.anchors.count * job.slices * job.k);
  plan.search_bytes =
      PairTile<T, nearest::kRows>::shared_bytes(p.dim, job.resident) + (p.k == 1 ? 0 : nearest::Lists::kSharedBytes);

  int64_t padded = 1;
  while (padded < job.k) padded *= 2;
  const size_t sort_bytes = sizeof(uint64_t) * kWarps * size_t(padded);
  const bool in_shared = sort_bytes <= kMostSortBytes;
  uint64_t* sorting = workspace.take<uint64_t>(in_shared ? 0 : p.anchors.count * padded);
  plan.merge = {job.found, p.anchors.count, job.slices, job.k, p.k, padded, in_shared ? nullptr : sorting,
                p.indices, p.distances};
  plan.merge_bytes = in_shared ? sort_bytes : 0;
  plan.bytes = workspace.bytes();
  return plan;
}

template <class Kernel, class Job>
cudaError_t launch(Kernel kernel, int64_t blocks, size_t shared, cudaStream_t stream, const Job& job) {
  const cudaError_t error = allow_shared_memory(kernel, shared);
  if (error != cudaSuccess) return error;
  CCP_LAUNCH(kernel, dim3(unsigned(blocks)), dim3(kThreads), shared, stream, job);
  return cudaGetLastError();
}

template <class T>
cudaError_t run(const NearestReferencesProblem& p, void* workspace, cudaStream_t stream) {
  const Plan plan = make_plan<T>(p, workspace);
  const auto search = [&](auto kernel) { return launch(kernel, plan.blocks, plan.search_bytes, stream, plan.job); };
  const cudaError_t error = p.k == 1 ? search(nearest::search_one<T>) : search(nearest::search_many<T>);
  if (error != cudaSuccess) return error;
  return launch(nearest::merge_slices, divide_up(p.anchors.count, kWarps), plan.merge_bytes, stream, plan.merge);
}

}  // namespace

size_t nearest_references_workspace_bytes(const NearestReferencesProblem& p) {
  return with_tile_type(p.anchors, p.references,
                        [&](auto number) { return make_plan<decltype(number)>(p, nullptr).bytes; });
}

cudaError_t nearest_references(const NearestReferencesProblem& p, void* workspace, cudaStream_t stream) {
  if (p.anchors.count == 0) return cudaSuccess;
  return with_tile_type(p.anchors, p.references,
                        [&](auto number) { return run<decltype(number)>(p, workspace, stream); });
}

}  // namespace cuda
}  // namespace ccp
