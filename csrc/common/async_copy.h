// Copies from global to shared memory that a thread starts and waits for later (cp.async, sm_80 and up).
#pragma once

#include "common/cuda.h"

namespace ccp {

// 16 bytes, of which the last 16 - valid_bytes are filled with zeros instead of read. Both addresses on 16-byte
// boundaries.
CCP_DEVICE void copy_async_16(void* shared, const void* global, int valid_bytes) {
#if defined(CCP_HOST_EMU)
  emu::async_copy(shared, global, 16, size_t(valid_bytes));
#else
  const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(to), "l"(global), "r"(valid_bytes) : "memory");
#endif
}

// Closes the group of copies started since the last commit.
CCP_DEVICE void copy_async_commit(CCP_HERE) {
#if defined(CCP_HOST_EMU)
  emu::async_commit({file, line});
#else
  asm volatile("cp.async.commit_group;\n" ::: "memory");
#endif
}

// Waits until at most `kGroupsStillOut` of this thread's groups are under way. Other threads see the data after a
// barrier.
template <int kGroupsStillOut>
CCP_DEVICE void copy_async_wait(CCP_HERE) {
#if defined(CCP_HOST_EMU)
  emu::async_wait(kGroupsStillOut, {file, line});
#else
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kGroupsStillOut) : "memory");
#endif
}

}  // namespace ccp
