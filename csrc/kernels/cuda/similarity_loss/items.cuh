// The items of one side as kernels read them: which take part, their labels and their components.
#pragma once

#include "common/async_copy.h"
#include "common/convert.h"
#include "common/simd.h"
#include "kernels/cuda/similarity_loss.h"

namespace ccp {
namespace cuda {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kStreamed = 64;  // items of a tile of the streamed side

// Warps are laid out 4 × 2 over a tile: owner × streamed. A warp's part is kM × kN fragments of 16 × 8 pairs.
constexpr int kWarpColumns = 2;
constexpr int kN = kStreamed / kWarpColumns / 8;
constexpr int kSpan = kStreamed / kWarpColumns;  // streamed items of a warp
template <int kOwner>
constexpr int kM = kOwner / (kWarps / kWarpColumns) / 16;

CCP_HD int64_t divide_up(int64_t n, int64_t by) { return (n + by - 1) / by; }

CCP_HD int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }

// Tiles are cut from a side's positions. An item has one each, but where groups must stay whole: then every kSpan
// positions begin with as many whole groups as fit, and the rest are empty.
CCP_HD int64_t positions_of(const Side& side) {
  return side.per_span ? divide_up(side.count, side.per_span) * kSpan : side.count;
}

// The items of a side that take part: all of them, or those listed.
struct Items {
  Side side;
  const int64_t* chosen;        // nullptr: all
  const int64_t* chosen_count;  // [1], on the device
  bool vectorised;              // the components of a unit of shared memory (chunk.cuh) are aligned

  CCP_DEVICE int64_t positions() const { return chosen ? *chosen_count : positions_of(side); }
  // The item at a position, -1 where there is none.
  CCP_DEVICE int64_t at(int64_t position) const {
    if (position >= positions()) return -1;
    if (side.per_span) {
      const int64_t within = position % kSpan, item = position / kSpan * side.per_span + within;
      return within < side.per_span && item < side.count ? item : -1;
    }
    return chosen ? chosen[position] : position;
  }
  CCP_DEVICE int64_t label(int64_t item) const { return side.labels ? side.labels[item] : item / side.group; }
};

CCP_DEVICE float load_component(const Side& side, int64_t index) {
  if (side.dtype == Dtype::kFloat32) return static_cast<const float*>(side.data)[index];
  const uint16_t bits = static_cast<const uint16_t*>(side.data)[index];
  return side.dtype == Dtype::kBFloat16 ? generic::bfloat16_to_float(bits) : generic::half_to_float(bits);
}

// The same of the vector times its scale. Rounded for itself: in the difference of two such products a compiler would
// fuse one of them, and that of two equal vectors would not be zero.
CCP_DEVICE float load_scaled(const Side& side, int64_t index, float scale) {
  return generic::rounded_product(load_component(side, index), scale);
}

CCP_DEVICE void store_component(void* data, Dtype dtype, int64_t index, float value) {
  if (dtype == Dtype::kFloat32)
    static_cast<float*>(data)[index] = value;
  else
    static_cast<uint16_t*>(data)[index] =
        dtype == Dtype::kBFloat16 ? generic::float_to_bfloat16(value) : generic::float_to_half(value);
}

}  // namespace cuda
}  // namespace ccp
