// What the CPU and the CUDA op share: reading and checking the arguments of similarity_loss.
#pragma once

#include <string>
#include <vector>

#include "kernels/similarity_loss.h"
#include "ops/tensor.h"

namespace ccp {

struct LossEntry {
  LossId id;
  bool uses_positives, grouped;
  int64_t members;  // numbers of a row's state
};
Normalize find_normalize(const std::string& name);
Reduction find_reduction(const std::string& name);

// By name, with as many parameters as it has.
LossEntry find_loss(const std::string& name, const std::vector<double>& parameters);

// The shapes, once checked. Samples are [M, D]; references are proxies [C, K, D] or labelled [N, D].
struct PairShapes {
  int64_t samples, references, dim;
  int64_t proxies_per_class;  // 0 for labelled references
};
PairShapes check_pairs(const Tensor& anchors, const Tensor& references, const Tensor& labels,
                       const std::optional<Tensor>& reference_labels, bool exclude_self);

// As find_loss, and groups fit into a tile.
LossEntry check_loss(const std::string& name, const std::vector<double>& parameters, const PairShapes& shapes,
                     bool proxy_rows);

// Checks of the tensors that the operators on shards hand to each other.
constexpr int64_t kRowParts = 6;  // members of RowParts
LossEntry check_states(const Tensor& states, const std::string& loss, const std::vector<double>& parameters);
void check_known_positives(const Tensor& x, const char* name, int64_t rows, int64_t count, ScalarType type);
void check_backward(const Tensor& grad_loss, const Tensor& row_state, const Tensor& normalizer, const Tensor& active,
                    int64_t rows, int64_t columns, ScalarType type);

}  // namespace ccp
