#include "ops/similarity_loss.h"

#include <algorithm>

#include "ops/describe.h"

namespace ccp {

// Errors name the registered losses; ccp_fast/functional.py never gets here with a wrong one.
LossEntry find_loss(const std::string& name, const std::vector<double>& parameters) {
  using T = float;
#define CCP_STRIP(...) __VA_ARGS__
#define CCP_FIND(loss, count, ...)                                                                                \
  if (name == #loss) {                                                                                            \
    CCP_CHECK(parameters.size() == count, "parameters: ", name, " expects ", count, ", got ", parameters.size()); \
    return {LossId::k_##loss, CCP_STRIP __VA_ARGS__ ::kUsesPositives, CCP_STRIP __VA_ARGS__ ::kGrouped,           \
            int64_t(sizeof(CCP_STRIP __VA_ARGS__ ::State<T>) / sizeof(T))};                                       \
  }
  using namespace CCP_CAPABILITY;
  CCP_FOR_EACH_LOSS(CCP_FIND)
#undef CCP_FIND
#undef CCP_STRIP
#define CCP_NAME(loss, count, ...) " " #loss
  fail("loss: expected one of" CCP_FOR_EACH_LOSS(CCP_NAME) ", got ", name);
#undef CCP_NAME
}

Normalize find_normalize(const std::string& name) {
  if (name == "none") return Normalize::kNone;
  if (name == "unit") return Normalize::kUnit;
  if (name == "ball") return Normalize::kBall;
  fail("normalize: expected none, unit or ball, got ", name);
}

Reduction find_reduction(const std::string& name) {
  if (name == "sum") return Reduction::kSum;
  if (name == "anchor_mean") return Reduction::kRowMean;
  if (name == "mean") return Reduction::kMean;
  if (name == "active_mean") return Reduction::kActiveMean;
  if (name == "none") return Reduction::kNone;
  fail("reduction: expected sum, anchor_mean, mean, active_mean or none, got ", name);
}

static void check_labels(const Tensor& labels, int64_t count, const char* name) {
  CCP_CHECK(labels.scalar_type() == ScalarType::Long && labels.dim() == 1 && labels.size(0) == count, name,
            ": expected int64 of shape [", count, "], got ", describe(labels));
}

PairShapes check_pairs(const Tensor& anchors, const Tensor& references, const Tensor& labels,
                       const std::optional<Tensor>& reference_labels, bool exclude_self) {
  CCP_CHECK(anchors.dim() == 2, "anchors: expected shape [M, D], got ", anchors.dim(), " dimensions");
  CCP_CHECK(references.dim() == 2 || references.dim() == 3, "references: expected shape [N, D] or [C, K, D], got ",
            references.dim(), " dimensions");
  const bool proxies = references.dim() == 3;
  PairShapes shapes{anchors.size(0), proxies ? references.size(0) * references.size(1) : references.size(0),
                    anchors.size(1), proxies ? references.size(1) : 0};
  CCP_CHECK(references.size(references.dim() - 1) == shapes.dim, "references: expected last dimension ", shapes.dim,
            ", the anchors', got ", references.size(references.dim() - 1));
  check_labels(labels, shapes.samples, "labels");
  CCP_CHECK(proxies != reference_labels.has_value(),
            "reference_labels: expected with references of shape [N, D], and only then, got ",
            reference_labels ? describe(*reference_labels) : "none", " with references ", describe(references));
  if (reference_labels) check_labels(*reference_labels, shapes.references, "reference_labels");
  CCP_CHECK(!exclude_self || shapes.samples <= shapes.references, "references: expected at least ", shapes.samples,
            ", one for each anchor, where a sample's pair with itself is left out, got ", shapes.references);
  return shapes;
}

LossEntry check_loss(const std::string& name, const std::vector<double>& parameters, const PairShapes& shapes,
                     bool proxy_rows) {
  const LossEntry entry = find_loss(name, parameters);
  CCP_CHECK(!entry.grouped || proxy_rows || shapes.proxies_per_class <= kMostMembers, "references: expected at most ",
            kMostMembers, " proxies per class, got ", shapes.proxies_per_class);
  return entry;
}

LossEntry check_states(const Tensor& states, const std::string& loss, const std::vector<double>& parameters) {
  const LossEntry entry = find_loss(loss, parameters);
  CCP_CHECK(states.dim() == 3 && states.size(1) == entry.members, "states: expected shape [parts, ", entry.members,
            ", rows], got ", describe(states));
  CCP_CHECK(states.scalar_type() == ScalarType::Float || states.scalar_type() == ScalarType::Double,
            "states: expected float32 or float64, got ", describe(states));
  return entry;
}

void check_known_positives(const Tensor& x, const char* name, int64_t rows, int64_t count, ScalarType type) {
  CCP_CHECK(x.dim() == 2 && x.size(0) == rows && x.size(1) == count && x.scalar_type() == type, name,
            ": expected shape [", rows, ", ", count, "] and the dtype that another operator gave, got ", describe(x));
}

void check_backward(const Tensor& grad_loss, const Tensor& row_state, const Tensor& normalizer, const Tensor& active,
                    int64_t rows, int64_t columns, ScalarType type) {
  CCP_CHECK(grad_loss.dim() == 0 || (grad_loss.dim() == 1 && grad_loss.size(0) == rows),
            "grad_loss: expected one number, or one for each of ", rows, " rows, got ", describe(grad_loss));
  CCP_CHECK(row_state.dim() == 2 && row_state.size(0) == kSaved && row_state.size(1) == rows &&
                row_state.scalar_type() == type,
            "row_state: expected shape [", kSaved, ", ", rows, "] and the dtype that similarity_finish gave, got ",
            describe(row_state));
  CCP_CHECK(normalizer.numel() == 2 && normalizer.scalar_type() == ScalarType::Double,
            "normalizer: expected two float64 numbers, got ", describe(normalizer));
  CCP_CHECK(active.numel() == std::max(rows, columns) && active.scalar_type() == ScalarType::Byte, "active: expected ",
            std::max(rows, columns), " bytes, got ", describe(active));
}

}  // namespace ccp
