// Copies of boxes of a matrix into shared memory, made by a unit of their own (TMA, cp.async.bulk.tensor, sm_90).
//
// A box is kBoxColumns numbers of 16 bits, 128 bytes, of some rows, which follow each other in shared memory; rows and
// columns outside of the matrix become zeros. The 16-byte unit u of the row that begins at address a lies at unit
// u ^ (a / 128 % 8): that is the swizzle that wgmma.h wants, and where rows begin at a multiple of 1024 bytes also that
// of Units in chunk.cuh.
#pragma once

#include <cstdint>

#include "common/mbarrier.h"
#if !defined(CCP_HOST_EMU)
#include <cuda.h>  // types alone: the library is not linked with the driver's
#endif

namespace ccp {

constexpr int kBoxColumns = 64;
constexpr int kBoxAlignment = 1024;  // of a box in shared memory, so that the swizzle begins there

#if defined(CCP_HOST_EMU)
using TensorMap = emu::TensorMap;
#else
using TensorMap = CUtensorMap;
#endif

// Starts the copy of the box that begins at `row` and `column`; its bytes count for `barrier`. The map is a parameter
// of the kernel (__grid_constant__).
CCP_DEVICE void copy_box(void* shared, const TensorMap& map, int column, int row, Mbarrier* barrier) {
#if defined(CCP_HOST_EMU)
  emu::async_box(shared, map, column, row, barrier);
#else
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], "
      "[%4];\n" ::"r"(shared_address(shared)),
      "l"(&map), "r"(column), "r"(row), "r"(shared_address(barrier))
      : "memory");
#endif
}

}  // namespace ccp
