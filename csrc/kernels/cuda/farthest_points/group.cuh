// The threads that work together on some points: a warp or a block.
#pragma once

#include "kernels/cuda/farthest_points/arithmetic.cuh"

namespace ccp {
namespace cuda {
namespace k_center {

template <class T>
struct Group {
  bool is_block;
  Farthest<T>* bests;  // of a block, in shared memory: [2, kWarps], used in turn, as warps may be a barrier ahead
  int turn = 0;

  CCP_DEVICE int warp() const { return is_block ? warp_of_thread() : 0; }
  CCP_DEVICE int last_warp() const { return is_block ? kWarps - 1 : 0; }  // it has the fewest points
  CCP_DEVICE int thread() const { return is_block ? int(threadIdx.x) : lane_of_thread(); }
  CCP_DEVICE int threads() const { return is_block ? kThreads : kWarp; }
  CCP_DEVICE int quads() const { return threads() / kQuad; }
};

// What a block's `bests` need of shared memory, for any T.
constexpr int kBestBytes = 2 * kWarps * int(sizeof(Farthest<double>));

template <class T>
CCP_DEVICE Group<T> one_warp() {
  return {false, nullptr};
}
template <class T>
CCP_DEVICE Group<T> whole_block(unsigned char* shared_bytes) {
  return {true, reinterpret_cast<Farthest<T>*>(shared_bytes)};
}

// A macro, so that each place is a barrier of its own for the emulator.
#define CCP_SYNC(group) \
  do {                  \
    if (group.is_block) \
      __syncthreads();  \
    else                \
      __syncwarp();     \
  } while (false)

// The best of all threads' candidates, for all. None passes before all have come.
template <class T>
CCP_DEVICE Farthest<T> farthest_in_group(Group<T>& group, Farthest<T> best) {
  best = farthest_in_warp(best);
  Farthest<T>* bests = group.bests + group.turn * kWarps;
  if (group.is_block && lane_of_thread() == 0) bests[warp_of_thread()] = best;
  CCP_SYNC(group);
  if (group.is_block) {
    for (int w = 0; w < kWarps; ++w) best.join(bests[w].distance, bests[w].index);
    group.turn ^= 1;
  }
  return best;
}

// Calls visit(i, absent) for every point of this thread's quad, point i being that of quad i % quads. Whole warps come
// along: where a quad has none left, with `absent` set and some i that exists.
template <class T, class Visit>
CCP_DEVICE void for_each_point(const Group<T>& group, int64_t count, const Visit& visit) {
  const int quad = lane_of_thread() / kQuad;
  for (int64_t first = group.warp() * kQuadsPerWarp; first < count; first += group.quads()) {
    const bool absent = first + quad >= count;
    visit(absent ? count - 1 : first + quad, absent);
  }
}

}  // namespace k_center
}  // namespace cuda
}  // namespace ccp
