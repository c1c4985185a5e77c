#include <string>

#include "kernels/cpu/capability.h"
#include "ops/ops.h"

namespace ccp {

// "key=value" lines; ccp_fast.info() turns them into a dict.
std::string build_info() {
  std::string text;
  text += "version=" CCP_VERSION "\n";
  text += "torch=" CCP_TORCH_VERSION "\n";  // the headers'; any later torch can load the library
  text += std::string("cpu_capability=") + capability_name(cpu_capability()) + "\n";
#ifdef CCP_HAVE_X86_CAPABILITIES
  text += "cpu_capabilities_built=portable,avx2,avx512\n";
#else
  text += "cpu_capabilities_built=portable\n";
#endif
  text += "cuda_architectures=" CCP_CUDA_ARCHITECTURES "\n";
#ifdef CCP_HAVE_HOPPER
  text += "hopper_built=yes\n";
#endif
#ifndef CCP_HAVE_CUDA
  text += "cuda_missing=" CCP_CUDA_MISSING "\n";
#endif
#if defined(__clang__)
  text += "compiler=clang " __clang_version__ "\n";
#else
  text += "compiler=g++ " __VERSION__ "\n";
#endif
  return text;
}

const char* cuda_architectures() { return CCP_CUDA_ARCHITECTURES; }
const char* cuda_missing() { return CCP_CUDA_MISSING; }

}  // namespace ccp
