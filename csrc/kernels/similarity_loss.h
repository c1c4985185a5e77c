// The work order of the similarity-loss kernels: plain pointers and sizes, filled in by csrc/ops/.
//
// Rows carry the loss, columns are what each row is compared with. With samples as anchors the rows are the M samples
// and the columns the N references; with proxies as anchors it is the other way round.
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "common/normalize.h"
#include "common/parallel.h"
#include "losses/registry.h"

namespace ccp {

enum class Reduction : int { kSum, kRowMean, kMean, kActiveMean, kNone };

// The embeddings of one side, [count, dim], contiguous.
struct EmbeddingSide {
  const void* data;
  Dtype dtype;
  int64_t count;
  const int32_t* labels;  // [count]; the same number means the same class. nullptr: index / group
  int64_t group;          // proxies per class, where the labels are implied
};

// Where the columns of each class are: members[starts[c]] .. members[starts[c + 1] - 1]; column j is number ordinals[j]
// among them. Only read for losses that use positives. nullptr: class c has the columns c·group .. c·group + group - 1.
struct ClassIndex {
  const int64_t* starts;
  const int64_t* members;
  const int64_t* ordinals;
  int64_t classes;
  int64_t largest;
};

// For a loss that reads positives, where the columns are one shard of all columns: each row's distances to its
// positives, and for backward the number of pairs, over all shards, in which each is active.
struct KnownPositives {
  int64_t count;          // of each row; 0: none are known, and the kernels look for them among the columns
  const void* distances;  // [rows, count] float or double
  const void* active;     // [rows, count] float or double, int32_t on a GPU; nullptr: to be counted
};

struct SimilarityProblem {
  LossId loss;
  const double* parameters;
  EmbeddingSide rows, columns;
  ClassIndex column_classes;
  KnownPositives known_positives;
  int64_t dim;
  Normalize normalize;
  bool exclude_diagonal;  // row i and column i are one and the same sample
  bool use_double;        // compute in double (either side is float64), otherwise in float
  ParallelFor parallel_for;
};

struct SimilarityForward {
  Reduction reduction;
  double* loss;        // [1], or [rows] for Reduction::kNone
  void* row_state;     // [kSaved, rows] float or double: what backward needs
  double* normalizer;  // [2]: what the positive and the negative sums were divided by
  uint8_t* active;     // [max(rows, columns)]: may this item of the streamed side have a gradient?
  void* states;        // [members, rows] float or double: what the rows have gathered, with only_states
  bool only_states;    // the rows are not finished: nothing but `active` and `states` is written
};

// Rows whose columns came in several parts: their states, put together in order, become what forward gives.
struct SimilarityFinish {
  LossId loss;
  const double* parameters;
  bool use_double;
  const void* states;  // [parts, members, rows]
  int64_t parts, rows;
  int64_t columns;    // of all parts together
  void* row_state;    // [kSaved, rows]
  double* row_parts;  // [6, rows]: the members of RowParts
};

struct SimilarityBackward {
  Reduction reduction;
  const double* grad_loss;  // [1], or [rows] for Reduction::kNone
  const void* row_state;
  const double* normalizer;
  const uint8_t* active;
  void* grad_rows;     // like rows.data; nullptr if not wanted
  void* grad_columns;  // like columns.data; nullptr if not wanted
};

}  // namespace ccp
