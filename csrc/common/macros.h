// Macros shared by host and device code.
#pragma once

#if defined(__CUDACC__)
#define CCP_HD __host__ __device__ __forceinline__
#else
#define CCP_HD inline __attribute__((always_inline))
#endif

// Every CPU kernel source is compiled once per instruction set (cmake/CpuCapability.cmake), each copy inside a
// namespace of its own; were it shared, the linker could keep an AVX-512 copy of an inline function for every machine.
#ifndef CCP_CAPABILITY
#define CCP_CAPABILITY generic
#endif
