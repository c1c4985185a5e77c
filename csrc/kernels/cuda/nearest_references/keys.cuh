// A neighbour as one number: the bits of its squared distance, which is not negative, above those of its index. Keys of
// one anchor are distinct, and ordered as neighbours are.
#pragma once

#include "kernels/cuda/similarity_loss/forward.cuh"

namespace ccp {
namespace cuda {
namespace nearest {

constexpr uint64_t kNoKey = ~uint64_t(0);

CCP_DEVICE uint64_t key_of(float squared, int64_t index) {
  return uint64_t(generic::bit_cast<uint32_t>(squared)) << 32 | uint32_t(index);
}
CCP_DEVICE float squared_of(uint64_t key) { return generic::bit_cast<float>(uint32_t(key >> 32)); }
CCP_DEVICE int64_t index_of(uint64_t key) { return int64_t(uint32_t(key)); }
CCP_DEVICE uint64_t nearer(uint64_t a, uint64_t b) { return a < b ? a : b; }

// The least of n keys, kNoKey of none; a warp together.
CCP_DEVICE uint64_t nearest_of(const uint64_t* keys, int64_t n) {
  uint64_t key = kNoKey;
  for (int64_t i = int(threadIdx.x) % kWarp; i < n; i += kWarp) key = nearer(key, keys[i]);
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) key = nearer(key, __shfl_xor_sync(kFullWarp, key, lanes));
  return key;
}

// A number that exactly k of the n keys do not exceed; kNoKey where there are no more than k. A warp together.
//
// Bisection: about as many passes over the keys as there are bits in how far apart they lie, and 64 at most. It needs
// no memory, so lists of any length will do.
CCP_DEVICE uint64_t bound_of_nearest(const uint64_t* keys, int64_t n, int64_t k) {
  if (n <= k) return kNoKey;
  uint64_t low = 0, high = kNoKey;
  while (low < high) {
    const uint64_t middle = low + (high - low) / 2;
    int count = 0;
    for (int64_t i = int(threadIdx.x) % kWarp; i < n; i += kWarp) count += keys[i] <= middle;
    for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) count += __shfl_xor_sync(kFullWarp, count, lanes);
    if (count == k) return middle;
    if (count > k)
      high = middle;
    else
      low = middle + 1;
  }
  return high;
}

// Moves the keys that do not exceed the bound to `to`, in their order; returns how many there are. `to` may be `keys`.
// A warp together.
CCP_DEVICE int64_t collect(const uint64_t* keys, int64_t n, uint64_t bound, uint64_t* to) {
  const int lane = int(threadIdx.x) % kWarp;
  int64_t collected = 0;
  for (int64_t first = 0; first < n; first += kWarp) {
    const uint64_t key = first + lane < n ? keys[first + lane] : kNoKey;
    const bool taken = key <= bound && key != kNoKey;
    const unsigned lanes = __ballot_sync(kFullWarp, taken);
    if (taken) to[collected + __popc(lanes & ((1u << lane) - 1))] = key;
    collected += __popc(lanes);
  }
  return collected;
}

// Sorts n = 2^i keys, that all lanes see, in a bitonic network. A warp together.
CCP_DEVICE void sort_keys(uint64_t* keys, int64_t n) {
  for (int64_t size = 2; size <= n; size *= 2)
    for (int64_t stride = size / 2; stride > 0; stride /= 2) {
      for (int64_t i = int(threadIdx.x) % kWarp; i < n / 2; i += kWarp) {
        const int64_t a = 2 * i - (i & (stride - 1)), b = a + stride;
        const uint64_t x = keys[a], y = keys[b];
        if ((x > y) == ((a & size) == 0)) {
          keys[a] = y;
          keys[b] = x;
        }
      }
      __syncwarp();
    }
}

}  // namespace nearest
}  // namespace cuda
}  // namespace ccp
