// How far the centres of a class are from each other, SoftTriple's regulariser: the sum over classes c and pairs k < k'
// of ‖w_ck - w_ck'‖, divided by C·K·(K - 1), each centre made one of length 1 (zero vectors stay zero). Distances come
// from differences, so that those of close centres are exact; where two coincide the gradient is zero.
#pragma once

#include <cstdint>

namespace ccp {

// What the sum is divided by; there is none to divide where this is 1.
inline double centre_pairs(int64_t classes, int64_t centres) {
  return classes > 0 && centres > 1 ? double(classes) * double(centres) * double(centres - 1) : 1;
}

}  // namespace ccp
