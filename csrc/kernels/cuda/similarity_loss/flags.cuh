// Which items take part, from a byte for each, in their order.
#pragma once

#include "kernels/cuda/similarity_loss/items.cuh"

namespace ccp {
namespace cuda {

constexpr int kFlags = 1024;  // that a block looks at together, at most

// list[..] = those of n flags that are set, in order, n at most kFlags; returns how many. The whole block together.
CCP_DEVICE int list_flags(const uint8_t* flags, int n, int* list, int* counts) {
  constexpr int kEach = kFlags / kThreads;
  const int first = int(threadIdx.x) * kEach, warp = int(threadIdx.x) / kWarp, lane = int(threadIdx.x) % kWarp;
  int mine = 0;
  for (int i = first; i < first + kEach && i < n; ++i) mine += flags[i] != 0;
  int until = mine;  // this lane included
  for (int lanes = 1; lanes < kWarp; lanes *= 2) {
    const int before = __shfl_up_sync(kFullWarp, until, lanes);
    if (lane >= lanes) until += before;
  }
  if (lane == kWarp - 1) counts[warp] = until;
  __syncthreads();
  int to = until - mine, all = 0;
  for (int w = 0; w < kWarps; ++w) {
    if (w < warp) to += counts[w];
    all += counts[w];
  }
  for (int i = first; i < first + kEach && i < n; ++i)
    if (flags[i]) list[to++] = i;
  __syncthreads();
  return all;
}

}  // namespace cuda
}  // namespace ccp
