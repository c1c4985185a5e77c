// What kernels need of CUDA. nvcc compiles their source for GPUs; with CCP_HOST_EMU a C++ compiler builds the same
// source against csrc/host_emu/, which runs it on the CPU for the tests.
//
// Kernels keep to what both sides have: dynamic shared memory only, whole warps in every warp operation.
#pragma once

#include <cstdint>

#if defined(CCP_HOST_EMU)

#include "host_emu/cuda.h"

#else

#include <cuda_runtime.h>

#define CCP_DEVICE __device__ __forceinline__
#define CCP_DEVICE_CALL inline __device__ __noinline__  // for what happens seldom: keeps it out of the caller's loop
// unsigned char name[]: the block's dynamic shared memory
#define CCP_SHARED(name) extern __shared__ __align__(128) unsigned char name[]
// The last parameter of primitives that wait or signal: in the emulator they know where in the source they stand.
#define CCP_HERE
#define CCP_AND_HERE
#define CCP_FROM_HERE
#define CCP_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  kernel<<<(grid), (block), (shared_bytes), (stream)>>>(__VA_ARGS__)

#endif

namespace ccp {

constexpr int kWarp = 32;
constexpr unsigned kFullWarp = 0xffffffffu;

// No launch: what results of no items are is written so.
inline cudaError_t clear_memory(void* memory, int64_t bytes, cudaStream_t stream) {
  return bytes > 0 ? cudaMemsetAsync(memory, 0, size_t(bytes), stream) : cudaSuccess;
}

// More dynamic shared memory than 48 KiB has to be asked for, once per kernel and device.
template <class Kernel>
inline cudaError_t allow_shared_memory(Kernel kernel, size_t bytes) {
  if (bytes <= 48 * 1024) return cudaSuccess;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes));
}

}  // namespace ccp
