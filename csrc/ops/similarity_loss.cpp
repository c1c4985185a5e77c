#include "ops/similarity_loss.h"

namespace ccp {

// Errors name the registered losses; ccp_fast/functional.py never gets here with a wrong one.
static LossEntry find_loss(const std::string& name) {
  using T = float;
#define CCP_STRIP(...) __VA_ARGS__
#define CCP_FIND(loss, count, ...) \
  if (name == #loss)               \
    return {LossId::k_##loss, count, CCP_STRIP __VA_ARGS__ ::kUsesPositives, CCP_STRIP __VA_ARGS__ ::kGrouped};
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
            ": expected int64 of shape [", count, "]");
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
            "reference_labels: expected with references of shape [N, D], and only then");
  if (reference_labels) check_labels(*reference_labels, shapes.references, "reference_labels");
  CCP_CHECK(!exclude_self || shapes.samples <= shapes.references, "references: expected at least ", shapes.samples,
            ", one for each anchor, where a sample's pair with itself is left out, got ", shapes.references);
  return shapes;
}

LossEntry check_loss(const std::string& name, const std::vector<double>& parameters, const PairShapes& shapes,
                     bool proxy_rows) {
  const LossEntry entry = find_loss(name);
  CCP_CHECK(parameters.size() == entry.parameters, "parameters: ", name, " expects ", entry.parameters, ", got ",
            parameters.size());
  CCP_CHECK(!entry.grouped || proxy_rows || shapes.proxies_per_class <= kMostMembers, "references: expected at most ",
            kMostMembers, " proxies per class, got ", shapes.proxies_per_class);
  return entry;
}

}  // namespace ccp
