// mbarriers (sm_90): barriers in shared memory that count arrivals and bytes of copies that other units make. A phase
// is over once all arrivals have come and all bytes that were announced have; its parity is that of its number, the
// first being 0. Waiting for the parity that precedes the first phase, 1, returns at once.
#pragma once

#include <cstdint>

#include "common/cuda.h"

namespace ccp {

// On an 8-byte boundary of shared memory.
using Mbarrier = uint64_t;

// Counted from the beginning of the window that is shared memory.
CCP_DEVICE unsigned shared_address(const void* shared) {
#if defined(CCP_HOST_EMU)
  return emu::shared_address(shared);
#else
  return static_cast<unsigned>(__cvta_generic_to_shared(shared));
#endif
}

// By one thread, before anyone uses it: then mbarrier_fence() and a barrier of the block.
CCP_DEVICE void mbarrier_init(Mbarrier* barrier, unsigned arrivals) {
#if defined(CCP_HOST_EMU)
  emu::mbarrier_init(barrier, arrivals);
#else
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
#endif
}

// Makes this thread's mbarrier_init() known to the unit that copies tensors.
CCP_DEVICE void mbarrier_fence(CCP_HERE) {
#if defined(CCP_HOST_EMU)
  emu::mbarrier_fence({file, line});
#else
  asm volatile("fence.mbarrier_init.release.cluster;\n" ::: "memory");
#endif
}

CCP_DEVICE void mbarrier_arrive(Mbarrier* barrier CCP_AND_HERE) {
#if defined(CCP_HOST_EMU)
  emu::mbarrier_arrive(barrier, 0, {file, line});
#else
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(shared_address(barrier)) : "memory");
#endif
}

// Arrives, and announces so many bytes of copies.
CCP_DEVICE void mbarrier_expect(Mbarrier* barrier, unsigned bytes CCP_AND_HERE) {
#if defined(CCP_HOST_EMU)
  emu::mbarrier_arrive(barrier, bytes, {file, line});
#else
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
#endif
}

// Until the phase of this parity is over. What came before the arrivals is seen after it.
CCP_DEVICE void mbarrier_wait(Mbarrier* barrier, unsigned parity CCP_AND_HERE) {
#if defined(CCP_HOST_EMU)
  emu::mbarrier_wait(barrier, parity, {file, line});
#else
  asm volatile(
      "{\n"
      ".reg .pred over;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 over, [%0], %1;\n"
      "@!over bra again;\n"
      "}\n" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
#endif
}

}  // namespace ccp
