// How precisely tensor cores multiply floats: see mma.h.
#pragma once

namespace ccp {

enum class Products : int {
  kOne,    // tf32, or exact for 16-bit inputs
  kThree,  // as precise as float
};

}  // namespace ccp
