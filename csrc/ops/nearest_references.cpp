#include "ops/nearest_references.h"

#include "ops/describe.h"

namespace ccp {

NeighborShapes check_neighbors(const Tensor& anchors, const Tensor& references, int64_t k, bool exclude_self) {
  CCP_CHECK(k >= 1, "k: expected at least 1, got ", k);
  CCP_CHECK(anchors.dim() == 2, "anchors: expected shape [M, D], got ", shape_of(anchors));
  const int64_t dims = references.dim();
  CCP_CHECK(dims == 2 || dims == 3, "references: expected shape [N, D] or [C, K, D], got ", shape_of(references));
  const NeighborShapes shapes{anchors.size(0), dims == 3 ? references.size(0) * references.size(1) : references.size(0),
                              anchors.size(1)};
  CCP_CHECK(references.size(dims - 1) == shapes.dim, "references: expected last dimension ", shapes.dim,
            ", the anchors', got shape ", shape_of(references));
  CCP_CHECK(shapes.references <= INT32_MAX, "references: expected at most ", INT32_MAX, ", got ", shapes.references);
  CCP_CHECK(!exclude_self || shapes.anchors == shapes.references,
            "references: expected the anchors themselves where each leaves out itself, got shape ",
            shape_of(references));
  return shapes;
}

}  // namespace ccp
