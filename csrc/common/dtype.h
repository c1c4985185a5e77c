// The element types a kernel reads and writes, without a torch header.
#pragma once

#include <cstdint>
#include <cstring>

#include "common/macros.h"

namespace ccp {

enum class Dtype : int { kFloat32, kFloat64, kBFloat16, kFloat16 };

CCP_HD int64_t dtype_bytes(Dtype dtype) { return dtype == Dtype::kFloat64 ? 8 : dtype == Dtype::kFloat32 ? 4 : 2; }

}  // namespace ccp
