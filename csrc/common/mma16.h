// The tensor cores' m16n8k16 product of 16-bit numbers, bfloat16 or float16, with sums in float:
// D[16×8] += A[16×16] · B[16×8], laid out as in the PTX manual (section "Matrix Fragments for mma.m16n8k16 with
// floating point type"). A register holds two numbers, the one of lower k in its lower half. With g = lane / 4 and t =
// lane % 4:
//   A: a[0] = (g, 2t..)  a[1] = (g + 8, 2t..)  a[2] = (g, 2t + 8..)  a[3] = (g + 8, 2t + 8..)
//   B: b[0] = (2t.., g)  b[1] = (2t + 8.., g)                           (row k, column n)
//   D: as in mma.h
// Products of two such numbers are exact in float.
#pragma once

#include "common/mma.h"

namespace ccp {

struct PackedA {
  uint32_t v[4];
};
struct PackedB {
  uint32_t v[2];
};

CCP_DEVICE float half_bits_to_float(uint16_t bits) {
#if defined(CCP_HOST_EMU)
  return generic::half_to_float(bits);
#else
  float x;  // one instruction
  asm("cvt.f32.f16 %0, %1;\n" : "=f"(x) : "h"(bits));
  return x;
#endif
}

// The lower and the upper number of a register.
template <Dtype dtype>
CCP_DEVICE float lower_half(uint32_t two) {
  return dtype == Dtype::kBFloat16 ? generic::bit_cast<float>(two << 16) : half_bits_to_float(uint16_t(two));
}
template <Dtype dtype>
CCP_DEVICE float upper_half(uint32_t two) {
  return dtype == Dtype::kBFloat16 ? generic::bit_cast<float>(two & 0xffff0000u)
                                   : half_bits_to_float(uint16_t(two >> 16));
}

// d[m][n] += a[m] · b[n].
template <Dtype dtype, int kM, int kN>
CCP_DEVICE void mma16(FragmentD (&d)[kM][kN], const PackedA (&a)[kM], const PackedB (&b)[kN]) {
  static_assert(dtype == Dtype::kBFloat16 || dtype == Dtype::kFloat16, "16 bits each");
#if defined(CCP_HOST_EMU)
  emulate_mma<2>(d, a, b, [](uint32_t two, int i) { return i ? upper_half<dtype>(two) : lower_half<dtype>(two); });
#else
#define CCP_MMA16(type)                                                                         \
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." type "." type                           \
               ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"                   \
               : "+f"(d[m][n].v[0]), "+f"(d[m][n].v[1]), "+f"(d[m][n].v[2]), "+f"(d[m][n].v[3]) \
               : "r"(a[m].v[0]), "r"(a[m].v[1]), "r"(a[m].v[2]), "r"(a[m].v[3]), "r"(b[n].v[0]), "r"(b[n].v[1]))
#pragma unroll
  for (int m = 0; m < kM; ++m)
#pragma unroll
    for (int n = 0; n < kN; ++n) {
      if (dtype == Dtype::kBFloat16)
        CCP_MMA16("bf16");
      else
        CCP_MMA16("f16");
    }
#undef CCP_MMA16
#endif
}

}  // namespace ccp
