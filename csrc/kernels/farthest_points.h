// What k-center makes of a sum of squares, on the CPU and on GPUs alike. The contract is in cpu/farthest_points.h.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/macros.h"
#include "common/normalize.h"

namespace ccp {
namespace CCP_CAPABILITY {
namespace k_center {

constexpr int kSumLanes = 16;  // of every sum of squares

// Whether ‖v‖² as it was summed will do for a scale; outside, squares over- or underflow.
CCP_HD bool in_range(double squares) { return squares > 1e-30 && squares < 1e30; }

// NaN where the vector has no finite norm.
template <class T>
CCP_HD T scale_of(Normalize normalize, double squares) {
  const double length = ::sqrt(squares);
  if (!(length <= 1.7976931348623157e308)) return T(__builtin_nan(""));
  if (normalize == Normalize::kBall) return length > 1 ? T(1 / length) : T(1);
  return length > 1e-12 ? T(1 / length) : T(0);
}

// ‖v‖² after normalisation, ranked without the rounding of a scaled vector: all vectors on the sphere are equal.
template <class T>
CCP_HD T norm_rank(Normalize normalize, T squares, T scale) {
  if (normalize == Normalize::kUnit) return scale > 0 ? T(1) : T(0);
  if (normalize == Normalize::kBall) return scale < 1 || squares > 1 ? T(1) : squares;
  return squares;
}

// The triangle inequality: ‖x − new‖ >= ‖old − new‖ − ‖x − old‖, so a point x nearer to its centre `old` than half the
// way from there to the new one keeps it. Returns the squared distance below which that holds for the computed, rounded
// numbers too; 0 where rounding could not be bounded (underflow, overflow).
template <class T>
CCP_HD T safe_distance(T between_centres, int64_t stride) {
  constexpr T kEpsilon = sizeof(T) == 4 ? T(1.2e-7) : T(2.3e-16);
  constexpr T kTiny = sizeof(T) == 4 ? T(1e-30) : T(1e-290);
  constexpr T kHuge = sizeof(T) == 4 ? T(1e38) : T(1e307);
  if (!(between_centres > kTiny && between_centres < kHuge)) return T(0);
  // A squared distance is a sum of stride / 16 + 4 roundings at most one after another, and of two before.
  const T relative_error = T(stride / kSumLanes + 8) * kEpsilon;
  return between_centres * (T(0.25) - 4 * relative_error);
}

}  // namespace k_center
}  // namespace CCP_CAPABILITY
}  // namespace ccp
