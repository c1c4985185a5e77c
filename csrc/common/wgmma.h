// wgmma (sm_90a): a warpgroup, four warps whose first has a multiple of four as its number, multiplies matrices of
// 16-bit numbers that lie in shared memory, D[64×64] += A[64×16] · B[16×64], with sums in float. It runs on while the
// warps do other things, and reads both matrices by itself until it is waited for.
//
// A is kept by rows and B by columns, 128 bytes of each, swizzled as tensor_copy.h does; eight of them are 1024 bytes,
// and matrix_at() tells where k = 0 begins. Warp w has rows 16w .. 16w + 15 of D, as mma.h lays out eight fragments
// side by side: section "Register Fragments for wgmma.mma_async.m64nNk16" of the PTX manual.
#pragma once

#include "common/mbarrier.h"
#include "common/mma.h"

namespace ccp {

constexpr int kWarpgroup = 4 * kWarp;
constexpr int kWgmmaRows = 64, kWgmmaColumns = 64, kWgmmaK = 16;
using WgmmaSums = FragmentD[1][kWgmmaColumns / 8];

// The matrix descriptor of rows of 128 bytes that begin at this address; moved on by so many bytes for k > 0. Its
// fields count units of 16 bytes: the start from bit 0, the distance between eights of rows from bit 32. Bit 62 is the
// 128-byte swizzle. (The leading dimension's offset, from bit 16, means nothing here and is 1.)
CCP_DEVICE uint64_t matrix_at(const void* shared) {
  return uint64_t(shared_address(shared) & 0x3ffff) >> 4 | uint64_t(1) << 16 | uint64_t(1024 >> 4) << 32 |
         uint64_t(1) << 62;
}

// Before products whose sums the warps have touched; ptxas wants one before each group.
CCP_DEVICE void wgmma_fence(CCP_HERE) {
#if defined(CCP_HOST_EMU)
  emu::wgmma_fence({file, line});
#else
  asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory");
#endif
}

// Closes the group of products started since the last commit.
CCP_DEVICE void wgmma_commit(CCP_HERE) {
#if defined(CCP_HOST_EMU)
  emu::wgmma_commit({file, line});
#else
  asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory");
#endif
}

// Until at most so many groups are under way: the others do not read shared memory any more.
template <int kGroupsStillOut>
CCP_DEVICE void wgmma_wait(CCP_HERE) {
#if defined(CCP_HOST_EMU)
  emu::wgmma_wait(kGroupsStillOut, {file, line});
#else
  asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(kGroupsStillOut) : "memory");
#endif
}

// The compiler may not move what reads or writes the sums past this.
CCP_DEVICE void keep_sums(WgmmaSums& d) {
#if defined(CCP_HOST_EMU)
  (void)d;
#else
#pragma unroll
  for (int n = 0; n < kWgmmaColumns / 8; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) asm volatile("" : "+f"(d[0][n].v[i])::"memory");
#endif
}

// Starts d += a · b.
template <Dtype dtype>
CCP_DEVICE void wgmma(WgmmaSums& d, uint64_t a, uint64_t b) {
  static_assert(dtype == Dtype::kBFloat16 || dtype == Dtype::kFloat16, "16 bits each");
#if defined(CCP_HOST_EMU)
  emu::wgmma(&d[0][0].v[0], a, b, [](uint16_t x) {
    return dtype == Dtype::kBFloat16 ? generic::bfloat16_to_float(x) : generic::half_to_float(x);
  });
#else
#define CCP_SUMS(n) "+f"(d[0][n].v[0]), "+f"(d[0][n].v[1]), "+f"(d[0][n].v[2]), "+f"(d[0][n].v[3])
#define CCP_WGMMA(type)                                                                                          \
  asm volatile(                                                                                                  \
      "{\n"                                                                                                      \
      ".reg .pred add;\n"                                                                                        \
      "setp.eq.b32 add, 0, 0;\n"                                                                                 \
      "wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type                                                \
      " {%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27," \
      "%28,%29,%30,%31}, %32, %33, add, 1, 1, 0, 0;\n"                                                           \
      "}\n"                                                                                                      \
      : CCP_SUMS(0), CCP_SUMS(1), CCP_SUMS(2), CCP_SUMS(3), CCP_SUMS(4), CCP_SUMS(5), CCP_SUMS(6), CCP_SUMS(7)   \
      : "l"(a), "l"(b))
  if (dtype == Dtype::kBFloat16)
    CCP_WGMMA("bf16");
  else
    CCP_WGMMA("f16");
#undef CCP_WGMMA
#undef CCP_SUMS
#endif
}

}  // namespace ccp
