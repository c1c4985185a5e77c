// The tensor cores' m16n8k8 product in tf32: D[16×8] += A[16×8] · B[8×8], each operand spread over the warp's lanes as
// the PTX manual lays it out (section "Matrix Fragments for mma.m16n8k8", .tf32). With g = lane / 4 and t = lane % 4:
//   A: a[0] = (g, t)  a[1] = (g + 8, t)  a[2] = (g, t + 4)  a[3] = (g + 8, t + 4)
//   B: b[0] = (t, g)  b[1] = (t + 4, g)                                    (row k, column n)
//   D: d[0] = (g, 2t)  d[1] = (g, 2t + 1)  d[2] = (g + 8, 2t)  d[3] = (g + 8, 2t + 1)
//
// tf32 keeps 10 of float's 23 fraction bits; of the registers given to it a core does not look at the others. A float
// is the sum of two such numbers, `large`, the nearest, and `small`, to within 2^-23 of itself, one unit in the last
// place: so three products (large·large + large·small + small·large) are within 2^-21 of the exact one, as good as a
// float product. Numbers that had 16 bits to begin with (bfloat16, float16 in its normal range) are exact in one.
//
// A product is exact, but the cores cut off what they add to D below its last bit instead of rounding it (Fasi et al.
// 2021, Ootomo & Yokota 2022), always towards zero: over n steps that is a bias of some n/2 units of the last place.
// So sums are kept short, and floats' own additions, which round, put them together: add().
#pragma once

#include "common/convert.h"
#include "common/cuda.h"
#include "common/products.h"

namespace ccp {

struct FragmentA {
  float v[4];
};
struct FragmentB {
  float v[2];
};
struct FragmentD {
  float v[4];
};

constexpr uint32_t kTf32Bits = 0xffffe000u, kHalfOfTf32 = 0x1000u;

// The nearest, ties away from zero; infinities and NaN stay what they are. No instruction of its own, but three.
CCP_DEVICE float to_tf32(float x) {
#if defined(CCP_HOST_EMU)
  const uint32_t bits = generic::bit_cast<uint32_t>(x);
  return (bits & 0x7f800000u) == 0x7f800000u ? x : generic::bit_cast<float>((bits + kHalfOfTf32) & kTf32Bits);
#else
  unsigned bits;
  asm("cvt.rna.tf32.f32 %0, %1;\n" : "=r"(bits) : "f"(x));
  return __uint_as_float(bits);
#endif
}
template <class Fragment>
CCP_DEVICE void round_to_tf32(const Fragment& x, Fragment& rounded) {
#pragma unroll
  for (int i = 0; i < int(sizeof(x.v) / sizeof(float)); ++i) rounded.v[i] = to_tf32(x.v[i]);
}

// The two numbers whose sum a float is, for every number of a fragment, in three instructions each.
//
// `large` is rounded and not cut off, which would save one of them: then `small` has either sign, and neither what a
// core cuts off of it (at most one unit in the last place of x: it has twelve bits, of which eleven are kept) nor the
// product small·small that is left out (2^-22) has one of its own. Cut off, all products would come out too small,
// by 2.3e-7 in the mean.
//
// `small` is exact, and NaN where x is NaN, whatever became of `large`; of infinities it is NaN as well.
template <class Fragment>
CCP_DEVICE void split_into_tf32(const Fragment& x, Fragment& large, Fragment& small) {
#pragma unroll
  for (int i = 0; i < int(sizeof(x.v) / sizeof(float)); ++i) {
    large.v[i] = generic::bit_cast<float>((generic::bit_cast<uint32_t>(x.v[i]) + kHalfOfTf32) & kTf32Bits);
    small.v[i] = __fsub_rn(x.v[i], large.v[i]);
  }
}

#if defined(CCP_HOST_EMU)
// The emulated warp hands its fragments round, and every lane computes its own four numbers. kPer numbers share a
// register; number(register, i) is the i-th of them. Sums are rounded after each term, or cut off where a test wants
// it.
template <int kPer, class A, class B, int kM, int kN, class Number>
inline void emulate_mma(FragmentD (&d)[kM][kN], const A (&a)[kM], const B (&b)[kN], const Number& number) {
  struct Operands {
    A a[kM];
    B b[kN];
  } mine;
  std::memcpy(mine.a, a, sizeof(a));
  std::memcpy(mine.b, b, sizeof(b));
  const int g = emu::lane() / 4, t = emu::lane() % 4;
  emu::exchange(mine, [&](auto of) {
    for (int m = 0; m < kM; ++m)
      for (int n = 0; n < kN; ++n)
        for (int i = 0; i < 4; ++i) {
          const int row = g + 8 * (i / 2), column = 2 * t + i % 2;
          emu::TensorCoreSum sum(d[m][n].v[i], 4 * kPer);
          for (int k = 0; k < 8 * kPer; ++k) {
            // Element (row, k) of A and (k, column) of B, from the lanes that hold them.
            const int lane = k / kPer % 4, half = k / kPer / 4;
            const float left = number(of(row % 8 * 4 + lane).a[m].v[row / 8 + 2 * half], k % kPer);
            const float right = number(of(column * 4 + lane).b[n].v[half], k % kPer);
            sum.add(left, right);
          }
          d[m][n].v[i] = sum.value();
        }
    return 0;
  });
}
#endif

template <int kM, int kN>
CCP_DEVICE void clear(FragmentD (&d)[kM][kN]) {
#pragma unroll
  for (int m = 0; m < kM; ++m)
#pragma unroll
    for (int n = 0; n < kN; ++n) d[m][n] = {};
}

// sum += part, rounded to nearest.
CCP_DEVICE void add(FragmentD& sum, const FragmentD& part) {
#pragma unroll
  for (int i = 0; i < 4; ++i) sum.v[i] += part.v[i];
}
template <int kM, int kN>
CCP_DEVICE void add(FragmentD (&sum)[kM][kN], const FragmentD (&part)[kM][kN]) {
#pragma unroll
  for (int m = 0; m < kM; ++m)
#pragma unroll
    for (int n = 0; n < kN; ++n) add(sum[m][n], part[m][n]);
}

// d[m][n] += a[m] · b[n], of the operands' tf32 bits alone.
template <int kM, int kN>
CCP_DEVICE void mma(FragmentD (&d)[kM][kN], const FragmentA (&a)[kM], const FragmentB (&b)[kN]) {
#if defined(CCP_HOST_EMU)
  emulate_mma<1>(d, a, b,
                 [](float x, int) { return generic::bit_cast<float>(generic::bit_cast<uint32_t>(x) & kTf32Bits); });
#else
#pragma unroll
  for (int m = 0; m < kM; ++m)
#pragma unroll
    for (int n = 0; n < kN; ++n)
      asm volatile(
          "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
          : "+f"(d[m][n].v[0]), "+f"(d[m][n].v[1]), "+f"(d[m][n].v[2]), "+f"(d[m][n].v[3])
          : "r"(__float_as_uint(a[m].v[0])), "r"(__float_as_uint(a[m].v[1])), "r"(__float_as_uint(a[m].v[2])),
            "r"(__float_as_uint(a[m].v[3])), "r"(__float_as_uint(b[n].v[0])), "r"(__float_as_uint(b[n].v[1])));
#endif
}

// The same for any floats.
template <Products products, int kM, int kN>
CCP_DEVICE void multiply(FragmentD (&d)[kM][kN], const FragmentA (&a)[kM], const FragmentB (&b)[kN]) {
  FragmentA large_a[kM];
  FragmentB large_b[kN];
  if constexpr (products == Products::kThree) {
    FragmentA small_a[kM];
    FragmentB small_b[kN];
#pragma unroll
    for (int m = 0; m < kM; ++m) split_into_tf32(a[m], large_a[m], small_a[m]);
#pragma unroll
    for (int n = 0; n < kN; ++n) split_into_tf32(b[n], large_b[n], small_b[n]);
    mma(d, small_a, large_b);  // the small terms first: they would drown in a large sum one by one
    mma(d, large_a, small_b);
  } else {
#pragma unroll
    for (int m = 0; m < kM; ++m) round_to_tf32(a[m], large_a[m]);
#pragma unroll
    for (int n = 0; n < kN; ++n) round_to_tf32(b[n], large_b[n]);
  }
  mma(d, large_a, large_b);
}
template <int kM, int kN>
CCP_DEVICE void multiply(Products products, FragmentD (&d)[kM][kN], const FragmentA (&a)[kM],
                         const FragmentB (&b)[kN]) {
  if (products == Products::kThree)
    multiply<Products::kThree>(d, a, b);
  else
    multiply<Products::kOne>(d, a, b);
}

}  // namespace ccp
