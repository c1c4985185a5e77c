// mbarriers, and copies of boxes of a matrix that complete on them: see common/mbarrier.h and common/tensor_copy.h.
#pragma once

#include <cstdint>

#include "host_emu/fibers.h"

namespace ccp {
namespace emu {

void mbarrier_init(uint64_t* barrier, unsigned arrivals);
void mbarrier_fence(Site site);
void mbarrier_arrive(uint64_t* barrier, unsigned bytes, Site site);
void mbarrier_wait(uint64_t* barrier, unsigned parity, Site site);

// Rows of 16-bit numbers, one after the other.
struct TensorMap {
  const unsigned char* data;
  int64_t columns, rows;
  int box_rows;  // of 64 columns
};

// The box is read at once, but it arrives only when somebody waits for the barrier; until then the target holds NaN.
void async_box(void* shared, const TensorMap& map, int column, int row, uint64_t* barrier);

}  // namespace emu
}  // namespace ccp
