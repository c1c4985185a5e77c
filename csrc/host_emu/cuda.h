// CUDA's names for code that the emulator runs; included by common/cuda.h with CCP_HOST_EMU.
//
// A barrier knows where in the source it stands, so that a test can leave it out and see whether anyone notices.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

#include "common/simd.h"
#include "host_emu/fibers.h"
#include "host_emu/mbarriers.h"
#include "host_emu/tensor_core_sum.h"
#include "host_emu/warpgroups.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define CCP_DEVICE inline
#define CCP_DEVICE_CALL inline
#define CCP_SHARED(name) unsigned char* const name = ::ccp::emu::shared_memory()
#define CCP_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()
#define CCP_AND_HERE , CCP_HERE
#define CCP_FROM_HERE , file, line  // handed on by a function that has them
#define CCP_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  ((void)(stream), ::ccp::emu::launch(grid, block, shared_bytes, [&] { kernel(__VA_ARGS__); }))

#define threadIdx (::ccp::emu::thread().thread_index)
#define blockIdx (::ccp::emu::thread().block_index)
#define blockDim (::ccp::emu::thread().block_dim)
#define gridDim (::ccp::emu::thread().grid_dim)

using dim3 = ::ccp::emu::Dim3;

// The runtime's few calls that launchers make.
using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
template <class Kernel>
inline cudaError_t cudaFuncSetAttribute(Kernel, cudaFuncAttribute, int) {
  return cudaSuccess;
}
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  ::ccp::emu::set_memory(to, value, bytes);
  return cudaSuccess;
}

// Synchronisation
inline void __syncthreads(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  ::ccp::emu::block_barrier({file, line});
}
inline void __syncwarp(unsigned mask = 0xffffffffu, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  ::ccp::emu::require_full_warp(mask);
  ::ccp::emu::warp_barrier({file, line});
}
inline void __threadfence() {}

// Warp operations
template <class T>
inline T __shfl_sync(unsigned mask, T value, int source) {
  ::ccp::emu::require_full_warp(mask);
  return ::ccp::emu::exchange(value, [&](auto of) { return of(source & 31); });
}
template <class T>
inline T __shfl_xor_sync(unsigned mask, T value, int lanes) {
  ::ccp::emu::require_full_warp(mask);
  return ::ccp::emu::exchange(value, [&](auto of) { return of(::ccp::emu::lane() ^ lanes); });
}
template <class T>
inline T __shfl_down_sync(unsigned mask, T value, int lanes) {
  ::ccp::emu::require_full_warp(mask);
  const int source = ::ccp::emu::lane() + lanes;
  return ::ccp::emu::exchange(value, [&](auto of) { return of(source < 32 ? source : ::ccp::emu::lane()); });
}
template <class T>
inline T __shfl_up_sync(unsigned mask, T value, int lanes) {
  ::ccp::emu::require_full_warp(mask);
  const int source = ::ccp::emu::lane() - lanes;
  return ::ccp::emu::exchange(value, [&](auto of) { return of(source >= 0 ? source : ::ccp::emu::lane()); });
}
inline unsigned __ballot_sync(unsigned mask, bool vote) {
  ::ccp::emu::require_full_warp(mask);
  return ::ccp::emu::exchange(vote, [](auto of) {
    unsigned bits = 0;
    for (int i = 0; i < 32; ++i) bits |= unsigned(of(i)) << i;
    return bits;
  });
}
inline int __any_sync(unsigned mask, bool vote) { return __ballot_sync(mask, vote) != 0; }
inline int __all_sync(unsigned mask, bool vote) { return __ballot_sync(mask, !vote) == 0; }

// Arithmetic. What these round for itself is fused with nothing, as on a GPU; the rest the compiler fuses as nvcc does.
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline float __fadd_rn(float a, float b) { return ::ccp::generic::in_register(a) + ::ccp::generic::in_register(b); }
inline float __fsub_rn(float a, float b) { return ::ccp::generic::in_register(a) - ::ccp::generic::in_register(b); }
inline float __fmul_rn(float a, float b) { return ::ccp::generic::in_register(a * b); }
inline double __dadd_rn(double a, double b) { return ::ccp::generic::in_register(a) + ::ccp::generic::in_register(b); }
inline double __dsub_rn(double a, double b) { return ::ccp::generic::in_register(a) - ::ccp::generic::in_register(b); }
inline double __dmul_rn(double a, double b) { return ::ccp::generic::in_register(a * b); }

// Atomics of integers: fibers of one thread of execution, so plain operations are atomic.
template <class T>
inline T atomicAdd(T* address, T value) {
  static_assert(!std::is_floating_point<T>::value, "float atomics would make results depend on the order of threads");
  const T old = *address;
  *address = old + value;
  return old;
}
template <class T>
inline T atomicMax(T* address, T value) {
  const T old = *address;
  if (value > old) *address = value;
  return old;
}
template <class T>
inline T atomicOr(T* address, T value) {
  const T old = *address;
  *address = old | value;
  return old;
}
template <class T>
inline T atomicMin(T* address, T value) {
  const T old = *address;
  if (value < old) *address = value;
  return old;
}

// 16 bytes of anything
struct alignas(16) [[gnu::may_alias]] float4 {
  float x, y, z, w;
};
struct alignas(8) [[gnu::may_alias]] float2 {
  float x, y;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) [[gnu::may_alias]] uint4 {
  unsigned x, y, z, w;
};
