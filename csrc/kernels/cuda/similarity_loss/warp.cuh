// What a warp does together for one item.
#pragma once

#include "kernels/cuda/similarity_loss/infos.cuh"

namespace ccp {
namespace cuda {

template <class T>
CCP_DEVICE T sum_over_warp(T x) {
#pragma unroll
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) x += __shfl_xor_sync(kFullWarp, x, lanes);
  return x;
}

// Fused by the source and not as the compiler likes: equal vectors have the same scale wherever it is found.
CCP_DEVICE float warp_scale(const Side& side, int64_t item, int64_t dim, Normalize normalize) {
  if (normalize == Normalize::kNone) return 1.0f;
  float squares = 0;
  for (int64_t d = threadIdx.x % kWarp; d < dim; d += kWarp) {
    const float v = load_component(side, item * dim + d);
    squares = ::fmaf(v, v, squares);
  }
  squares = sum_over_warp(squares);
  return normalizing_scale(normalize, in_range(squares) ? double(squares) : exact_squares(side, item, dim));
}

// Of two normalised vectors, from their difference.
CCP_DEVICE float warp_distance(const Side& a, int64_t item_a, float scale_a, const Side& b, int64_t item_b,
                               float scale_b, int64_t dim) {
  float squared = 0;
  for (int64_t d = threadIdx.x % kWarp; d < dim; d += kWarp) {
    const float difference = load_scaled(a, item_a * dim + d, scale_a) - load_scaled(b, item_b * dim + d, scale_b);
    squared += difference * difference;
  }
  return ::sqrtf(sum_over_warp(squared));
}

}  // namespace cuda
}  // namespace ccp
