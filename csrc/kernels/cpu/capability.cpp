#include "kernels/cpu/capability.h"

#include <cstdlib>
#include <cstring>
#include <initializer_list>

namespace ccp {

const char* capability_name(Capability capability) {
  switch (capability) {
    case Capability::kAvx512:
      return "avx512";
    case Capability::kAvx2:
      return "avx2";
    default:
      return "portable";
  }
}

static Capability detect() {
#ifdef CCP_HAVE_X86_CAPABILITIES
  Capability best = Capability::kPortable;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
    best = Capability::kAvx2;
  if (best == Capability::kAvx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
    best = Capability::kAvx512;
  if (const char* wanted = std::getenv("CCP_FAST_CPU_CAPABILITY")) {
    for (Capability lesser : {Capability::kPortable, Capability::kAvx2})
      if (std::strcmp(wanted, capability_name(lesser)) == 0 && lesser < best) best = lesser;
  }
  return best;
#else
  return Capability::kPortable;
#endif
}

Capability cpu_capability() {
  static const Capability capability = detect();
  return capability;
}

}  // namespace ccp
