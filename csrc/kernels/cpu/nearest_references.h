// The k nearest references of every anchor, by squared Euclidean distance of the normalised vectors.
//
// Neighbours are ordered by (squared distance as computed, index): the lower index wins a tie. The distance of a pair
// is a function of its two vectors, wherever in a tile they lie, so the result does not depend on how the work is cut.
#pragma once

#include "kernels/cpu/capability.h"
#include "kernels/similarity_loss.h"

namespace ccp {

struct NearestReferencesProblem {
  EmbeddingSide anchors, references;  // of these, labels are not read
  int64_t dim;
  int64_t k;
  Normalize normalize;
  bool exclude_diagonal;  // anchor i and reference i are one and the same vector
  bool use_double;        // compute in double (either side is float64), otherwise in float
  int64_t* indices;       // [anchors, k] nearest first; -1 behind the last reference
  void* distances;        // [anchors, k] float or double; +inf behind the last reference
  ParallelFor parallel_for;
};

// Rows that cannot be compared: NaN, infinity, or squares beyond a quarter of the compute type's range, so that no
// distance overflows. The lowest of each side, -1 where there is none; with either, the output is meaningless.
struct NearestReferencesStatus {
  int64_t bad_anchor, bad_reference;
};

}  // namespace ccp

CCP_DECLARE_CPU_KERNEL(NearestReferencesStatus, nearest_references, (const NearestReferencesProblem& problem))
