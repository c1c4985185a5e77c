// The similarity losses on the GPU: what a launch needs, in plain pointers to device memory.
//
// Forward and gradients share one scheme (similarity_loss/pair_tile.cuh): a block owns a tile of one side and streams
// the other side past it. Where the owned side alone would leave multiprocessors idle, the streamed side is cut into
// slices; what the slices have gathered is put together in a fixed order by a second, small launch. No float is ever
// added atomically, so results are the same bit by bit from run to run on one kind of GPU.
#pragma once

#include <cstdint>

#include "common/cuda.h"
#include "common/dtype.h"
#include "common/normalize.h"
#include "common/products.h"
#include "kernels/similarity_loss.h"

namespace ccp {
namespace cuda {

// The embeddings of one side, [count, dim], contiguous: float32, bfloat16 or float16.
struct Side {
  const void* data;
  Dtype dtype;
  int64_t count;
  const int64_t* labels;  // [count]; nullptr: index / group
  int64_t group;          // proxies per class, where the labels are implied; otherwise 1
  int per_span;           // items in a warp's part of a tile so that groups stay whole; 0: all that fit
};

// For losses that use positives: which columns are a row's own class's, and their distances.
// Row i has entries starts[i] .. starts[i + 1] - 1, by ascending column.
struct PositivesList {
  const int64_t* starts;   // [rows + 1]
  const int64_t* columns;  // [starts[rows]]
  const float* distances;  // [starts[rows]]
  const float* farthest;   // [rows]; -inf where there is none
  int32_t* active;         // [starts[rows]] the pairs in which each takes part; counted by backward, zero before
  bool counted;            // they are counted already
};

struct Problem {
  LossId loss;
  const double* parameters;  // on the host
  Side rows, columns;
  int64_t dim;
  Normalize normalize;
  bool exclude_diagonal;  // row i and column i are one and the same sample
  Products products;
  int multiprocessors;
  size_t shared_bytes;  // that a block may have
  bool hopper;          // forward may take its path for compute capability 9.0
  PositivesList positives;
};

struct Forward {
  Reduction reduction;
  float* loss;         // [1], or [rows] for Reduction::kNone
  float* row_state;    // [kSaved, rows]
  double* normalizer;  // [2]
  uint8_t* active;   // [max(rows, columns)]: may this item of the longer side (the columns, if equal) have a gradient?
  float* states;     // [members, rows] what the rows have gathered, with only_states
  bool only_states;  // the rows are not finished: nothing but `active` and `states` is written
};

struct Backward {
  Reduction reduction;
  const float* grad_loss;  // [1], or [rows] for Reduction::kNone
  const float* row_state;
  const double* normalizer;
  const uint8_t* active;
  void* grad_rows;     // like rows.data; nullptr if not wanted
  void* grad_columns;  // like columns.data; nullptr if not wanted
};

// Scratch for one call, on 256-byte boundaries; its contents need not be kept. O(rows + columns), plus at most a fixed
// number of tiles per multiprocessor: 128 · 128 floats of each for backward where both gradients are found in one pass.
size_t forward_workspace_bytes(const Problem& problem);
size_t backward_workspace_bytes(const Problem& problem, const Backward& out);

cudaError_t similarity_loss_forward(const Problem& problem, const Forward& out, void* workspace, cudaStream_t stream);
cudaError_t similarity_loss_backward(const Problem& problem, const Backward& out, void* workspace, cudaStream_t stream);

// Rows whose columns came in several parts.
cudaError_t similarity_loss_finish(const SimilarityFinish& job, cudaStream_t stream);
// Adds to problem.positives.active the pairs with these columns.
cudaError_t similarity_loss_count(const Problem& problem, cudaStream_t stream);

bool uses_positives(LossId loss);

// How long the lists of positives can get, where that is known beforehand or little; otherwise -1, and the GPU has to
// be asked for starts[rows], and waited for, which a CUDA graph cannot.
int64_t most_positives(const Problem& problem);
// starts[i + 1] - starts[i] positives for each row i. Those among proxies need not be counted.
cudaError_t count_positives(const Problem& problem, int64_t* starts, cudaStream_t stream);
// The other lists, given `starts`, which is written itself where the columns are proxies; counters become zero.
cudaError_t gather_positives(const Problem& problem, int64_t* starts, int64_t* columns, float* distances,
                             float* farthest, int32_t* active, cudaStream_t stream);
// The lists where the distances [rows, columns.group] are known and not all positives are among the columns, which are
// proxies. counts [rows, columns.group]: nullptr for zeros.
cudaError_t list_known_positives(const Problem& problem, const float* distances, const int32_t* counts, int64_t* starts,
                                 int64_t* columns, float* farthest, int32_t* active, cudaStream_t stream);

}  // namespace cuda
}  // namespace ccp
