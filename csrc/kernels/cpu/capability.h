// Picks the copy of a CPU kernel that this processor can run. Usage:
//
//   CCP_DECLARE_CPU_KERNEL(void, my_kernel, (const MyProblem& problem))   // in csrc/kernels/cpu/my_kernel.h
//   CCP_CPU_KERNEL(my_kernel)(problem);                                   // in csrc/ops/cpu/my_kernel.cpp
#pragma once

namespace ccp {

enum class Capability : int { kPortable = 0, kAvx2 = 1, kAvx512 = 2 };

// The best instruction set that is both compiled in and present, or a lesser one named by CCP_FAST_CPU_CAPABILITY.
Capability cpu_capability();
const char* capability_name(Capability capability);

}  // namespace ccp

#ifdef CCP_HAVE_X86_CAPABILITIES
#define CCP_DECLARE_CPU_KERNEL(ret, name, args) \
  namespace ccp {                               \
  namespace portable {                          \
  ret name args;                                \
  }                                             \
  namespace avx2 {                              \
  ret name args;                                \
  }                                             \
  namespace avx512 {                            \
  ret name args;                                \
  }                                             \
  }
#define CCP_CPU_KERNEL(name)                                                   \
  (::ccp::cpu_capability() == ::ccp::Capability::kAvx512 ? ::ccp::avx512::name \
   : ::ccp::cpu_capability() == ::ccp::Capability::kAvx2 ? ::ccp::avx2::name   \
                                                         : ::ccp::portable::name)
#else
#define CCP_DECLARE_CPU_KERNEL(ret, name, args) \
  namespace ccp {                               \
  namespace portable {                          \
  ret name args;                                \
  }                                             \
  }
#define CCP_CPU_KERNEL(name) (::ccp::portable::name)
#endif
