// A vector of floats or doubles of the widest kind this file is compiled for, and the few functions that loss code
// needs on it. The same functions exist for plain numbers, so a loss written against them runs on CPU vectors and, one
// number per thread, on a GPU.
//
// Vec<T> is a GCC/Clang vector: + - * / and comparisons work lane by lane; a comparison gives a mask for select().
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "common/macros.h"

#if !defined(__CUDACC__)
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif
#endif

namespace ccp {
namespace CCP_CAPABILITY {

// x; but the compiler no longer knows how it was computed, and cannot fuse that with what follows.
template <class V>
CCP_HD V in_register(V x) {
#if defined(__x86_64__) && !defined(__CUDACC__)
  asm("" : "+x"(x));
#elif defined(__aarch64__) && !defined(__CUDACC__)
  asm("" : "+w"(x));
#endif
  return x;
}

// Plain numbers -------------------------------------------------------------------------------------------------------

CCP_HD float select(bool mask, float a, float b) { return mask ? a : b; }
CCP_HD double select(bool mask, double a, double b) { return mask ? a : b; }
CCP_HD bool any(bool mask) { return mask; }
CCP_HD bool any_less(float a, float b) { return a < b; }
CCP_HD bool any_less(double a, double b) { return a < b; }
CCP_HD float exp(float x) { return ::expf(x); }
CCP_HD double exp(double x) { return ::exp(x); }
CCP_HD float sqrt(float x) { return ::sqrtf(x); }
CCP_HD double sqrt(double x) { return ::sqrt(x); }

// Vectors (host only) -------------------------------------------------------------------------------------------------

#if !defined(__CUDACC__)

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

typedef float VecF __attribute__((vector_size(kVectorBytes)));
typedef double VecD __attribute__((vector_size(kVectorBytes)));
typedef int32_t MaskF __attribute__((vector_size(kVectorBytes)));
typedef int64_t MaskD __attribute__((vector_size(kVectorBytes)));

template <class T>
struct VecOf;
template <>
struct VecOf<float> {
  using type = VecF;
  using mask = MaskF;
  using integer = int32_t;
};
template <>
struct VecOf<double> {
  using type = VecD;
  using mask = MaskD;
  using integer = int64_t;
};
template <class T>
using Vec = typename VecOf<T>::type;
template <class T>
using Mask = typename VecOf<T>::mask;
template <class T>
constexpr int kLanes = kVectorBytes / int(sizeof(T));

template <class T>
CCP_HD Vec<T> load(const T* p) {
  Vec<T> v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
template <class T>
CCP_HD void store(T* p, Vec<T> v) {
  std::memcpy(p, &v, sizeof(v));
}
template <class T>
CCP_HD Mask<T> load_integers(const typename VecOf<T>::integer* p) {
  Mask<T> v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
// x - 0 is x whatever its sign, which compilers know; 0 + x would be computed, since it makes 0 of -0.
template <class T>
CCP_HD Vec<T> broadcast(T x) {
  return x - Vec<T>{};
}

CCP_HD VecF select(MaskF mask, VecF a, VecF b) { return mask ? a : b; }
CCP_HD VecD select(MaskD mask, VecD a, VecD b) { return mask ? a : b; }

// Masks that are known when the code is compiled: what they select costs nothing.
struct AllLanes {};
struct NoLanes {
  CCP_HD AllLanes operator!() const { return {}; }
};
CCP_HD constexpr bool any(NoLanes) { return false; }
template <class V>
CCP_HD V select(NoLanes, V, V b) {
  return b;
}
template <class V>
CCP_HD V select(AllLanes, V a, V) {
  return a;
}
template <class M>
CCP_HD M operator&(M mask, AllLanes) {
  return mask;
}
template <class M>
CCP_HD M operator|(M mask, NoLanes) {
  return mask;
}
#endif  // !__CUDACC__

// a · b rounded for itself, the same number wherever it is computed: compilers fuse a product with a difference that
// follows, and where one of two such differences is fused and the other is not, what should cancel does not.
CCP_HD float rounded_product(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fmul_rn(a, b);
#else
  return in_register(a * b);
#endif
}
CCP_HD double rounded_product(double a, double b) { return in_register(a * b); }
#if !defined(__CUDACC__)
CCP_HD VecF rounded_product(VecF a, float b) { return in_register(a * b); }
CCP_HD VecD rounded_product(VecD a, double b) { return in_register(a * b); }
#endif

// max and min keep a NaN in `b`, for numbers and vectors alike.
template <class V>
CCP_HD V max(V a, V b) {
  return select(a > b, a, b);
}
template <class V>
CCP_HD V min(V a, V b) {
  return select(a < b, a, b);
}

#if !defined(__CUDACC__)

#if defined(__AVX512F__)
CCP_HD VecF max(VecF a, VecF b) { return (VecF)_mm512_max_ps((__m512)a, (__m512)b); }
CCP_HD VecF min(VecF a, VecF b) { return (VecF)_mm512_min_ps((__m512)a, (__m512)b); }
#elif defined(__AVX2__)
CCP_HD VecF max(VecF a, VecF b) { return (VecF)_mm256_max_ps((__m256)a, (__m256)b); }
CCP_HD VecF min(VecF a, VecF b) { return (VecF)_mm256_min_ps((__m256)a, (__m256)b); }
#endif

CCP_HD bool any(MaskF mask) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
#elif defined(__AVX2__)
  return _mm256_movemask_ps((__m256)mask) != 0;
#elif defined(__x86_64__)
  return _mm_movemask_ps((__m128)mask) != 0;
#elif defined(__aarch64__)
  return vmaxvq_u32((uint32x4_t)mask) != 0;
#else
  int32_t bits = 0;
  for (int i = 0; i < kLanes<float>; ++i) bits |= mask[i];
  return bits != 0;
#endif
}
CCP_HD bool any(MaskD mask) { return any((MaskF)mask); }

// any(a < b), without the detour over a mask that is a vector.
CCP_HD bool any_less(VecF a, VecF b) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_LT_OQ) != 0;
#else
  return any(a < b);
#endif
}
CCP_HD bool any_less(VecD a, VecD b) {
#if defined(__AVX512F__)
  return _mm512_cmp_pd_mask((__m512d)a, (__m512d)b, _CMP_LT_OQ) != 0;
#else
  return any(a < b);
#endif
}

// The lanes of a mask as bits, the first lane lowest.
template <class M>
CCP_HD uint32_t lane_bits(M mask) {
  uint32_t bits = 0;
  for (size_t i = 0; i < sizeof(M) / sizeof(mask[0]); ++i) bits |= uint32_t(mask[i] & 1) << i;
  return bits;
}
#if defined(__AVX512F__)
CCP_HD uint32_t lane_bits(MaskF mask) { return _mm512_movepi32_mask((__m512i)mask); }
CCP_HD uint32_t lane_bits(MaskD mask) { return _mm512_movepi64_mask((__m512i)mask); }
#elif defined(__AVX2__)
CCP_HD uint32_t lane_bits(MaskF mask) { return uint32_t(_mm256_movemask_ps((__m256)mask)); }
#elif defined(__x86_64__)
CCP_HD uint32_t lane_bits(MaskF mask) { return uint32_t(_mm_movemask_ps((__m128)mask)); }
#endif

// a0 b0 a1 b1 ... of the lower or the upper half of the lanes of both.
template <bool upper, class V>
CCP_HD V interleave(V a, V b) {
  constexpr int lanes = sizeof(V) / sizeof(a[0]), first = upper ? lanes / 2 : 0;
#if defined(__clang__)
  V out;
  for (int i = 0; i < lanes; ++i) out[i] = i % 2 ? b[first + i / 2] : a[first + i / 2];
  return out;
#else
  decltype(a < b) from;
#pragma GCC unroll 16
  for (int i = 0; i < lanes; ++i) from[i] = first + i / 2 + i % 2 * lanes;
  return __builtin_shuffle(a, b, from);
#endif
}

CCP_HD VecF sqrt(VecF x) {
  for (int i = 0; i < kLanes<float>; ++i) x[i] = __builtin_sqrtf(x[i]);
  return x;
}
CCP_HD VecD sqrt(VecD x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = __builtin_sqrt(x[i]);
  return x;
}

// exp to within 2 ulp: exp(x) = 2^n · exp(r), |r| <= ln2/2, with Cephes' minimax polynomial for exp(r).
// Below the smallest normal number it gives 0, above the largest infinity; NaN stays NaN.
CCP_HD VecF exp(VecF x) {
#if defined(__AVX512F__)
  const VecF clamped = min(broadcast(89.0f), x);
#else
  const VecF clamped = min(broadcast(88.72f), max(broadcast(-87.33f), x));
#endif
  const float round_to_integer = 12582912.0f;  // 1.5 · 2^23: adding it leaves no fraction bits
  const VecF n = (clamped * 1.44269504088896341f + round_to_integer) - round_to_integer;
  const VecF r = (clamped - n * 0.693359375f) - n * -2.12194440e-4f;
  VecF p = broadcast(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
#if defined(__AVX512F__)
  // p · 2^n in one step, overflow and NaN included; zero below the smallest, whatever came out for p there.
  const __mmask16 normal = _mm512_cmp_ps_mask((__m512)x, (__m512)broadcast(-87.33f), _CMP_NLT_UQ);
  return (VecF)_mm512_maskz_scalef_ps(normal, (__m512)p, (__m512)n);
#else
  // Two factors of 2^(n/2) reach up to 2^128, where one exponent field would overflow.
  const MaskF ni = __builtin_convertvector(n, MaskF);
  const MaskF half = ni >> 1;
  const MaskF low = (half + 127) << 23;
  const MaskF high = ((ni - half) + 127) << 23;
  VecF result = p * (VecF)low * (VecF)high;
  result = select(x < -87.33f, VecF{}, result);
  result = select(x > 88.72f, broadcast(__builtin_inff()), result);
  return select(x == x, result, x);
#endif
}
// Doubles serve the gradient checks: exact beats fast.
CCP_HD VecD exp(VecD x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = ::exp(x[i]);
  return x;
}

#endif  // !__CUDACC__

}  // namespace CCP_CAPABILITY
}  // namespace ccp
