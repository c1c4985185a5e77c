// What the CPU and the CUDA op share: reading and checking the arguments of similarity_loss.
#pragma once

#include <string>
#include <vector>

#include "kernels/similarity_loss.h"
#include "ops/tensor.h"

namespace ccp {

struct LossEntry {
  LossId id;
  size_t parameters;
  bool uses_positives, grouped;
};
Normalize find_normalize(const std::string& name);
Reduction find_reduction(const std::string& name);

// The shapes, once checked. Samples are [M, D]; references are proxies [C, K, D] or labelled [N, D].
struct PairShapes {
  int64_t samples, references, dim;
  int64_t proxies_per_class;  // 0 for labelled references
};
PairShapes check_pairs(const Tensor& anchors, const Tensor& references, const Tensor& labels,
                       const std::optional<Tensor>& reference_labels, bool exclude_self);

// The loss by its name, with as many parameters as it has, and groups that fit into a tile.
LossEntry check_loss(const std::string& name, const std::vector<double>& parameters, const PairShapes& shapes,
                     bool proxy_rows);

}  // namespace ccp
