// The components of an item in global memory, whose type the compiler knows, two neighbours at a time.
#pragma once

#include <type_traits>

#include "kernels/cuda/similarity_loss/chunk.cuh"

namespace ccp {
namespace cuda {

template <Dtype dtype>
class Components {
 public:
  CCP_DEVICE Components(const void* data, int64_t item, int64_t dim)
      : row_(static_cast<Number*>(const_cast<void*>(data)) + item * dim),
        dim_(int(dim)),
        in_words_(dim % 2 == 0 && reinterpret_cast<uintptr_t>(data) % sizeof(Word) == 0) {}

  // Components d, even, and d + 1, zero behind the last.
  CCP_DEVICE float2 load(int d) const {
    if (in_words_) return numbers(*word(d));
    const Number each[2] = {row_[d], d + 1 < dim_ ? row_[d + 1] : Number(0)};
    Word two;
    memcpy(&two, each, sizeof(two));
    return numbers(two);
  }
  CCP_DEVICE void store(int d, float2 x) const {
    const Word two = packed(x);
    if (in_words_) {
      *word(d) = two;
      return;
    }
    Number each[2];
    memcpy(each, &two, sizeof(two));
    row_[d] = each[0];
    if (d + 1 < dim_) row_[d + 1] = each[1];
  }

 private:
  static constexpr bool kIsFloat = dtype == Dtype::kFloat32;
  using Number = std::conditional_t<kIsFloat, float, uint16_t>;
  using Word = std::conditional_t<kIsFloat, float2, uint32_t>;

  CCP_DEVICE static float2 numbers(float2 two) { return two; }
  CCP_DEVICE static float2 numbers(uint32_t two) { return numbers_of<dtype>(two); }
  CCP_DEVICE static Word packed(float2 x) {
    if constexpr (kIsFloat)
      return x;
    else
      return rounded(x.x) | uint32_t(rounded(x.y)) << 16;
  }
  CCP_DEVICE static uint16_t rounded(float x) {
    return dtype == Dtype::kBFloat16 ? generic::float_to_bfloat16(x) : generic::float_to_half(x);
  }
  CCP_DEVICE Word* word(int d) const { return reinterpret_cast<Word*>(row_ + d); }

  Number* row_;
  int dim_;
  bool in_words_;
};

// Calls f with the type of a side's numbers, as KnownDtype<..>, where tiles hold Ts.
template <Dtype dtype>
struct KnownDtype {
  static constexpr Dtype value = dtype;
};
template <class T, class F>
CCP_DEVICE void with_dtype(Dtype dtype, const F& f) {
  if constexpr (sizeof(T) == sizeof(float)) {
    if (dtype == Dtype::kFloat32) return f(KnownDtype<Dtype::kFloat32>());
  }
  if (dtype == Dtype::kBFloat16)
    f(KnownDtype<Dtype::kBFloat16>());
  else
    f(KnownDtype<Dtype::kFloat16>());
}

}  // namespace cuda
}  // namespace ccp
