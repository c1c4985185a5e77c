// The k nearest references of every anchor on the GPU, in the order of (squared distance as computed, index).
//
// The tiles are those of the similarity losses (similarity_loss/pair_tile.cuh): a block owns 128 anchors and streams a
// slice of the references past them. What each slice has found, a second launch merges, sorts and writes.
// - nearest_references/one.cuh: for k = 1 the nearest so far stays in registers.
// - nearest_references/many.cuh: otherwise each anchor has a list in global memory, of a fixed size whatever M and N
// are.
// - nearest_references/merge.cuh: the second launch.
//
// A reference at no finite distance (NaN, infinity, overflow) is never picked.
#pragma once

#include "kernels/cuda/similarity_loss.h"

namespace ccp {
namespace cuda {

struct NearestReferencesProblem {
  Side anchors, references;  // at most 2^31 - 1 each; labels are not read
  int64_t dim;
  int64_t k;
  Normalize normalize;
  bool exclude_diagonal;  // anchor i and reference i are one and the same vector
  Products products;
  int multiprocessors;
  int64_t* indices;  // [anchors, k] nearest first; -1 behind the last
  float* distances;  // [anchors, k] +inf behind the last
};

// Scratch on 256-byte boundaries; its contents need not be kept. O(anchors · k), and lists of O(k) for two tiles of
// anchors a multiprocessor.
size_t nearest_references_workspace_bytes(const NearestReferencesProblem& problem);

cudaError_t nearest_references(const NearestReferencesProblem& problem, void* workspace, cudaStream_t stream);

}  // namespace cuda
}  // namespace ccp
