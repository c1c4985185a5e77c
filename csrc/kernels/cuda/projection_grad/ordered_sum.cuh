// The sum of a chunk's squared differences, in the CPU's order: 16 running sums, one for the i-th of every 16 elements,
// folded into one at the chunk's end, or after every 1024 elements where types had to be converted.
#pragma once

#include "common/cuda.h"

namespace ccp {
namespace cuda {
namespace projection {

constexpr int kStreamers = 512;  // threads that bring squares
constexpr int kSumLanes = 16;
constexpr int kConvertBlock = 1024;  // elements

// Where a tile's squares lie in shared memory, if a streaming thread has kRun consecutive ones. Its i-th goes to the
// i-th plane, and planes are shifted against each other: neither threads that write a plane nor lanes that read 16
// squares in a row meet in a bank.
template <int kRun>
struct Layout {
  static constexpr int kStep = kSumLanes / kRun;  // from 16 squares to the next 16
  static constexpr int kPlane = kStreamers + kStep;
  static CCP_DEVICE int of_lane(int lane) { return lane % kRun * kPlane + lane / kRun; }
};

// Held by one warp.
template <int kRun>
struct OrderedSum {
  double running = 0;  // of this lane's elements; lanes 16 .. 31 have some only where blocks are folded
  double total = 0;    // of what has been folded, in every lane

  // sum + this lane's squares among those of elements begin .. end - 1, where begin is a multiple of 16
  static CCP_DEVICE double every_16th(const double* squares, int begin, int end, double sum) {
    const int lane = int(threadIdx.x) % kSumLanes;
    squares += Layout<kRun>::of_lane(lane);
#pragma unroll 8
    for (int at = begin; at + lane < end; at += kSumLanes)
      sum = __dadd_rn(sum, squares[at / kSumLanes * Layout<kRun>::kStep]);
    return sum;
  }

  // The first n squares of a tile.
  CCP_DEVICE void add(const double* squares, int n) {
    if (int(threadIdx.x) % kWarp < kSumLanes) running = every_16th(squares, 0, n, running);
  }

  // The same, of converted types: each half of the warp takes a block.
  CCP_DEVICE void add_in_blocks(const double* squares, int n) {
    const int half = int(threadIdx.x) % kWarp / kSumLanes;
    for (int block = 0; block < n; block += 2 * kConvertBlock) {
      const int begin = block + half * kConvertBlock, end = begin + kConvertBlock;
      running = every_16th(squares, begin, end < n ? end : n, 0);
      fold();
    }
  }

  CCP_DEVICE void fold() {
    const int half = int(threadIdx.x) & kSumLanes;
    double sum = 0;
#pragma unroll 4
    for (int lane = 0; lane < kSumLanes; ++lane) sum = __dadd_rn(sum, __shfl_sync(kFullWarp, running, half + lane));
    total = __dadd_rn(total, __shfl_sync(kFullWarp, sum, 0));
    total = __dadd_rn(total, __shfl_sync(kFullWarp, sum, kSumLanes));
  }
};

}  // namespace projection
}  // namespace cuda
}  // namespace ccp
