// Products of a warpgroup, which run on by themselves: see common/wgmma.h.
#pragma once

#include <cstdint>

#include "host_emu/fibers.h"

namespace ccp {
namespace emu {

// A lane computes its own sums, and reads shared memory for them only when it waits; until then they are NaN.
void wgmma_fence(Site site);
void wgmma(float* d, uint64_t a, uint64_t b, float (*number)(uint16_t));
void wgmma_commit(Site site);
void wgmma_wait(int groups_still_out, Site site);

// For tests: products that were started while those of another warpgroup were under way.
int64_t products_side_by_side();

}  // namespace emu
}  // namespace ccp
