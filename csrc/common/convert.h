// Reading and writing rows of any element type as float or double. The 16-bit conversions are plain integer code that
// compilers vectorise; rounding is to nearest, ties to even.
#pragma once

#include <cstdint>
#include <cstring>

#include "common/dtype.h"
#include "common/macros.h"

namespace ccp {
namespace CCP_CAPABILITY {

template <class To, class From>
CCP_HD To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "sizes differ");
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

CCP_HD float bfloat16_to_float(uint16_t bits) { return bit_cast<float>(uint32_t(bits) << 16); }

CCP_HD uint16_t float_to_bfloat16(float x) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return uint16_t(x == x ? rounded : 0x7fc0);
}

// Shifting a half's exponent and fraction into a float's place leaves it 2^112 too small; one multiplication mends
// that for normal and subnormal numbers alike.
CCP_HD float half_to_float(uint16_t half) {
  const uint32_t sign = uint32_t(half & 0x8000) << 16;
  const uint32_t magnitude = uint32_t(half & 0x7fff) << 13;
  const float scaled = bit_cast<float>(magnitude) * 5.192296858534828e33f;  // 2^112
  const uint32_t finite = bit_cast<uint32_t>(scaled);
  const uint32_t special = magnitude | 0x7f800000;  // infinity or NaN
  return bit_cast<float>(sign | ((half & 0x7c00) == 0x7c00 ? special : finite));
}

CCP_HD uint16_t float_to_half(float x) {
  const uint32_t sign = bit_cast<uint32_t>(x) & 0x80000000u;
  const float magnitude = bit_cast<float>(bit_cast<uint32_t>(x) ^ sign);
  // Adding a number whose last bit has a half's weight lets the adder round, subnormals included.
  uint32_t base_bits = (bit_cast<uint32_t>(magnitude) & 0x7f800000u);
  base_bits = base_bits < 0x38800000u ? 0x38800000u : base_bits;  // smallest normal half
  const float base = bit_cast<float>(base_bits + (13u << 23));
  const float rounded = (magnitude + base) - base;
  const uint32_t normal = (bit_cast<uint32_t>(rounded) - (112u << 23)) >> 13;
  const uint32_t subnormal = uint32_t(rounded * 16777216.0f);  // in units of 2^-24
  uint32_t half = rounded < 6.103515625e-05f ? subnormal : normal;
  half = rounded >= 65520.0f ? 0x7c00u : half;
  half = x == x ? half : 0x7e00u;
  return uint16_t((sign >> 16) | half);
}

// out[0..n) = element begin.. of data
template <class T>
inline void read_elements(const void* data, Dtype dtype, int64_t begin, int64_t n, T* out) {
  switch (dtype) {
    case Dtype::kFloat32: {
      const float* in = static_cast<const float*>(data) + begin;
      for (int64_t i = 0; i < n; ++i) out[i] = T(in[i]);
      return;
    }
    case Dtype::kFloat64: {
      const double* in = static_cast<const double*>(data) + begin;
      for (int64_t i = 0; i < n; ++i) out[i] = T(in[i]);
      return;
    }
    case Dtype::kBFloat16: {
      const uint16_t* in = static_cast<const uint16_t*>(data) + begin;
      for (int64_t i = 0; i < n; ++i) out[i] = T(bfloat16_to_float(in[i]));
      return;
    }
    case Dtype::kFloat16: {
      const uint16_t* in = static_cast<const uint16_t*>(data) + begin;
      for (int64_t i = 0; i < n; ++i) out[i] = T(half_to_float(in[i]));
      return;
    }
  }
}

template <class T>
inline void write_elements(const T* in, int64_t n, void* data, Dtype dtype, int64_t begin) {
  switch (dtype) {
    case Dtype::kFloat32: {
      float* out = static_cast<float*>(data) + begin;
      for (int64_t i = 0; i < n; ++i) out[i] = float(in[i]);
      return;
    }
    case Dtype::kFloat64: {
      double* out = static_cast<double*>(data) + begin;
      for (int64_t i = 0; i < n; ++i) out[i] = double(in[i]);
      return;
    }
    case Dtype::kBFloat16: {
      uint16_t* out = static_cast<uint16_t*>(data) + begin;
      for (int64_t i = 0; i < n; ++i) out[i] = float_to_bfloat16(float(in[i]));
      return;
    }
    case Dtype::kFloat16: {
      uint16_t* out = static_cast<uint16_t*>(data) + begin;
      for (int64_t i = 0; i < n; ++i) out[i] = float_to_half(float(in[i]));
      return;
    }
  }
}

}  // namespace CCP_CAPABILITY
}  // namespace ccp
