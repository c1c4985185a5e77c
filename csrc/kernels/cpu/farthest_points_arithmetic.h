// The arithmetic of k-center as kernels/cpu/farthest_points.h fixes it: lanes, tree, scales and ranks.
#pragma once

#include "common/simd.h"
#include "kernels/farthest_points.h"

namespace ccp {
namespace CCP_CAPABILITY {
namespace k_center {

constexpr int kBlock = 4;  // points measured against a centre at a time: enough independent sums to hide latency

CCP_HD int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
CCP_HD int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }
CCP_HD int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// The contract's tree over 16 lanes in memory. Reading them back four at a time beats taking a register apart.
template <class T>
CCP_HD T fold_lanes(const T* lanes) {
  typedef T Four __attribute__((vector_size(4 * sizeof(T))));
  Four part[4];
  memcpy(part, lanes, sizeof(part));
  part[0] = (part[0] + part[2]) + (part[1] + part[3]);
  T sum[4];
  memcpy(sum, part, sizeof(sum));
  return (sum[0] + sum[2]) + (sum[1] + sum[3]);
}

// out[r] = ‖centre − rows[r]‖². Vectors are padded with zeros to `stride` components, a multiple of kSumLanes. One pass
// over the components per register's worth of lanes: the block is in L1, and narrow register files do not spill.
template <class T, int R>
CCP_HD void squared_distances(const T* centre, const T* const* rows, int64_t stride, T* out) {
  alignas(64) T lanes[R][kSumLanes];
  for (int first = 0; first < kSumLanes; first += kLanes<T>) {
    Vec<T> sum[R] = {};
    for (int64_t d = first; d < stride; d += kSumLanes) {
      const Vec<T> c = load(centre + d);
      for (int r = 0; r < R; ++r) {
        const Vec<T> difference = c - load(rows[r] + d);
        sum[r] = sum[r] + difference * difference;
      }
    }
    for (int r = 0; r < R; ++r) store(lanes[r] + first, sum[r]);
  }
  for (int r = 0; r < R; ++r) out[r] = fold_lanes(lanes[r]);
}

template <class T>
CCP_HD T squared_distance(const T* a, const T* b, int64_t stride) {
  T out;
  squared_distances<T, 1>(a, &b, stride, &out);
  return out;
}

template <class T>
CCP_HD T squared_norm(const T* v, int64_t stride) {
  alignas(64) T lanes[kSumLanes];
  for (int first = 0; first < kSumLanes; first += kLanes<T>) {
    Vec<T> sum{};
    for (int64_t d = first; d < stride; d += kSumLanes) sum = sum + load(v + d) * load(v + d);
    store(lanes + first, sum);
  }
  return fold_lanes(lanes);
}

// For a distance that came out as NaN: equal components, infinite ones too, are no distance apart. Still NaN only where
// a component is.
template <class T>
T squared_distance_beyond_finite(const T* a, const T* b, int64_t stride) {
  T lanes[kSumLanes] = {};
  for (int64_t d = 0; d < stride; ++d) {
    const T difference = a[d] == b[d] ? T(0) : a[d] - b[d];
    lanes[d % kSumLanes] += difference * difference;
  }
  return fold_lanes(lanes);
}

template <class T>
bool holds_nan(const T* v, int64_t stride) {
  for (int64_t d = 0; d < stride; ++d)
    if (v[d] != v[d]) return true;
  return false;
}

// NaN where the vector has no finite norm.
template <class T>
T normalizing_scale(Normalize normalize, const T* v, T squares, int64_t dim) {
  double exact = squares;
  if (!in_range(exact)) {
    exact = 0;
    for (int64_t d = 0; d < dim; ++d) exact += double(v[d]) * double(v[d]);
  }
  return scale_of<T>(normalize, exact);
}

}  // namespace k_center
}  // namespace CCP_CAPABILITY
}  // namespace ccp
