// Chunks of a tile's vectors in shared memory, and their products in the tensor cores.
//
// A chunk holds 128 bytes of each item: 32 floats, or 64 numbers of 16 bits where both sides have the same such type,
// copied as they are. An item's row has eight units of 16 bytes, and unit u of item i lies at place u ^ (i % 8): so
// eight items' same unit lies in all banks once, whether fragments are loaded number by number or by ldmatrix, and no
// bank has two requests at a time.
#pragma once

#include "common/ldmatrix.h"
#include "common/mma16.h"
#include "kernels/cuda/similarity_loss/items.cuh"

namespace ccp {
namespace cuda {

constexpr int kRowBytes = 128, kUnitBytes = 16, kUnits = kRowBytes / kUnitBytes;
static_assert((kUnits & (kUnits - 1)) == 0, "remainders are masks");
template <class T>
constexpr int kChunk = kRowBytes / int(sizeof(T));  // components
template <class T>
constexpr unsigned kInUnit = kUnitBytes / sizeof(T);

// How a chunk's numbers are multiplied. Known at run time alone: kernels for each way would take long to compile, and
// the question is asked once for many products.
struct Arithmetic {
  Products products;  // of floats
  Dtype dtype;        // of 16-bit numbers
};

// Where a unit of an item lies, and the same unit of the items a multiple of eight behind it, which are swizzled alike:
// so what depends on the lane is found once, and a fragment's items are constants apart.
template <class Byte>  // unsigned char, const or not
class Units {
 public:
  CCP_DEVICE Units(Byte* chunk, int item)
      : row_(chunk + item * kRowBytes), swizzle_(unsigned(item) % kUnits * kUnitBytes) {}

  CCP_DEVICE Byte* at(unsigned unit, int behind = 0) const {
    return row_ + (unit * kUnitBytes ^ swizzle_) + behind * kRowBytes;
  }

 private:
  Byte* row_;
  unsigned swizzle_;
};

// The two numbers of a register of 16-bit ones.
template <Dtype dtype>
CCP_DEVICE float2 numbers_of(uint32_t two) {
  return {lower_half<dtype>(two), upper_half<dtype>(two)};
}

// Components d, even, and d + 1 of an item, which the tile's own type T holds or, for 16 bits, `dtype`.
template <class T, Dtype dtype>
CCP_DEVICE float2 two_components_of(const unsigned char* chunk, int item, unsigned d) {
  const T* at = reinterpret_cast<const T*>(Units(chunk, item).at(d / kInUnit<T>)) + d % kInUnit<T>;
  if constexpr (sizeof(T) == sizeof(float))
    return *reinterpret_cast<const float2*>(at);
  else
    return numbers_of<dtype>(*reinterpret_cast<const uint32_t*>(at));
}

// Starts the copy of one unit: components d .. of an item, zeros where there are none. What must be converted, or is
// not aligned, is copied at once.
CCP_DEVICE void start_unit(const Items& items, int64_t item, int64_t dim, int64_t d, float* to) {
  const int64_t begin = item * dim + d;
  const int left = item < 0 || d >= dim ? 0 : dim - d < 4 ? int(dim - d) : 4;
  if (items.side.dtype == Dtype::kFloat32 && items.vectorised) {
    const float* from = static_cast<const float*>(items.side.data);
    copy_async_16(to, left ? from + begin : from, 4 * left);
    return;
  }
  float4 four = {0.0f, 0.0f, 0.0f, 0.0f};
  if (items.vectorised && left == 4) {
    const uint2 bits = *reinterpret_cast<const uint2*>(static_cast<const uint16_t*>(items.side.data) + begin);
    const uint16_t half[4] = {uint16_t(bits.x), uint16_t(bits.x >> 16), uint16_t(bits.y), uint16_t(bits.y >> 16)};
    float v[4];
#pragma unroll
    for (int i = 0; i < 4; ++i)
      v[i] =
          items.side.dtype == Dtype::kBFloat16 ? generic::bfloat16_to_float(half[i]) : generic::half_to_float(half[i]);
    four = {v[0], v[1], v[2], v[3]};
  } else {
    if (left > 0) four.x = load_component(items.side, begin);
    if (left > 1) four.y = load_component(items.side, begin + 1);
    if (left > 2) four.z = load_component(items.side, begin + 2);
    if (left > 3) four.w = load_component(items.side, begin + 3);
  }
  *reinterpret_cast<float4*>(to) = four;
}

CCP_DEVICE void start_unit(const Items& items, int64_t item, int64_t dim, int64_t d, uint16_t* to) {
  const uint16_t* from = static_cast<const uint16_t*>(items.side.data);
  const int left = item < 0 || d >= dim ? 0 : dim - d < 8 ? int(dim - d) : 8;
  if (left) from += item * dim + d;
  if (items.vectorised) {
    copy_async_16(to, from, 2 * left);
    return;
  }
  uint32_t two[4] = {};
#pragma unroll
  for (int i = 0; i < 8; ++i)
    if (i < left) two[i / 2] |= uint32_t(from[i]) << i % 2 * 16;
  *reinterpret_cast<uint4*>(to) = {two[0], two[1], two[2], two[3]};
}

// Starts the copy of one chunk of kItems items, beginning at component d; item_of(i) is -1 where there is none.
template <class T, int kItems, class ItemOf>
CCP_DEVICE void start_chunk(const Items& items, const ItemOf& item_of, int64_t dim, int64_t d, unsigned char* to) {
#pragma unroll
  for (int q = int(threadIdx.x); q < kItems * kUnits; q += kThreads) {
    const unsigned i = unsigned(q) / kUnits, unit = unsigned(q) % kUnits;
    start_unit(items, item_of(int(i)), dim, d + unit * kInUnit<T>, reinterpret_cast<T*>(Units(to, int(i)).at(unit)));
  }
}

// dot += the chunk's part of the products of kM · 16 owned items from `owner` on with kN · 8 streamed ones: what a warp
// has to do with a tile. Of floats each step's sums are its own (mma.h).
template <Products products, int kM, int kN>
CCP_DEVICE void multiply_chunk32(const unsigned char* owner_chunk, int owner, const unsigned char* streamed_chunk,
                                 int streamed, FragmentD (&dot)[kM][kN]) {
  const int lane = int(threadIdx.x) % kWarp, g = lane / 4, t = lane % 4;
  const Units owned(owner_chunk, owner + g), others(streamed_chunk, streamed + g);
  const auto number = [&](const auto& units, int unit, int behind) {
    return reinterpret_cast<const float*>(units.at(unsigned(unit), behind))[t];
  };
  constexpr int kAtOnce = kN / 2;  // where gradients take most registers, few are left
#pragma unroll 1                   // a step has work enough to hide the loop, and unrolled it costs registers
  for (int unit = 0; unit < kUnits; unit += 2) {
    FragmentA a[kM];
#pragma unroll
    for (int m = 0; m < kM; ++m)
#pragma unroll
      for (int i = 0; i < 4; ++i) a[m].v[i] = number(owned, unit + i / 2, m * 16 + i % 2 * 8);
#pragma unroll
    for (int first = 0; first < kN; first += kAtOnce) {
      FragmentB b[kAtOnce];
#pragma unroll
      for (int n = 0; n < kAtOnce; ++n)
#pragma unroll
        for (int i = 0; i < 2; ++i) b[n].v[i] = number(others, unit + i, (first + n) * 8);
      FragmentD part[kM][kAtOnce] = {};
      multiply<products>(part, a, b);
#pragma unroll
      for (int m = 0; m < kM; ++m)
#pragma unroll
        for (int n = 0; n < kAtOnce; ++n) add(dot[m][first + n], part[m][n]);
    }
  }
}

template <Dtype dtype, int kM, int kN>
CCP_DEVICE void multiply_chunk16(const unsigned char* owner_chunk, int owner, const unsigned char* streamed_chunk,
                                 int streamed, FragmentD (&dot)[kM][kN]) {
  static_assert(kN % 2 == 0, "ldmatrix brings two fragments of B");
  const int lane = int(threadIdx.x) % kWarp;
  const Units owned(owner_chunk, owner + lane % 16), others(streamed_chunk, streamed + lane / 16 * 8 + lane % 8);
#pragma unroll 1
  for (int unit = 0; unit < kUnits; unit += 2) {
    PackedA a[kM];
    PackedB b[kN];
#pragma unroll
    for (int m = 0; m < kM; ++m) {
      const FourMatrices four = load_matrices<false>(owned.at(unsigned(unit + lane / 16), m * 16));
#pragma unroll
      for (int i = 0; i < 4; ++i) a[m].v[i] = four.v[i];
    }
#pragma unroll
    for (int n = 0; n < kN; n += 2) {
      const FourMatrices four = load_matrices<false>(others.at(unsigned(unit + lane / 8 % 2), n * 8));
#pragma unroll
      for (int i = 0; i < 4; ++i) b[n + i / 2].v[i % 2] = four.v[i];
    }
    mma16<dtype>(dot, a, b);
  }
}

template <class T, int kM, int kN>
CCP_DEVICE void multiply_chunk(const unsigned char* owner_chunk, int owner, const unsigned char* streamed_chunk,
                               int streamed, Arithmetic arithmetic, FragmentD (&dot)[kM][kN]) {
  if constexpr (sizeof(T) == sizeof(float)) {
    if (arithmetic.products == Products::kThree)
      multiply_chunk32<Products::kThree>(owner_chunk, owner, streamed_chunk, streamed, dot);
    else
      multiply_chunk32<Products::kOne>(owner_chunk, owner, streamed_chunk, streamed, dot);
  } else if (arithmetic.dtype == Dtype::kBFloat16) {
    multiply_chunk16<Dtype::kBFloat16>(owner_chunk, owner, streamed_chunk, streamed, dot);
  } else {
    multiply_chunk16<Dtype::kFloat16>(owner_chunk, owner, streamed_chunk, streamed, dot);
  }
}

// The squares of a tile's components, added up while its chunks pass by a team of kTeam threads, whose first has a
// multiple of that as its number: four threads share an item, and have the same quarter of each chunk of it.
template <class T, int kItems, int kTeam = kThreads>
class Squares {
 public:
  static constexpr int kParts = 4, kAtOnce = kTeam / kParts, kRounds = kItems / kAtOnce;
  static_assert(kItems % kAtOnce == 0, "whole rounds");

  CCP_DEVICE static int item(int round) { return round * kAtOnce + int(threadIdx.x) % kTeam / kParts; }
  CCP_DEVICE static bool is_first() { return threadIdx.x % kParts == 0; }

  CCP_DEVICE void add(const unsigned char* chunk, Arithmetic arithmetic) {
    constexpr int kUnitsEach = kUnits / kParts;
#pragma unroll
    for (int round = 0; round < kRounds; ++round)
#pragma unroll
      for (int u = 0; u < kUnitsEach; ++u)
        sums_[round] += of_unit(Units(chunk, item(round)).at(threadIdx.x % kParts * kUnitsEach + u), arithmetic);
  }

  // The sum for item(round), in all of its four threads; nothing is left of it. Whole warps together.
  CCP_DEVICE float take(int round) {
    float sum = sums_[round];
    sums_[round] = 0;
    sum += __shfl_xor_sync(kFullWarp, sum, 1);
    return sum + __shfl_xor_sync(kFullWarp, sum, 2);
  }

 private:
  CCP_DEVICE static float of_unit(const unsigned char* unit, Arithmetic arithmetic) {
    if constexpr (sizeof(T) == sizeof(float)) {
      const float4 x = *reinterpret_cast<const float4*>(unit);
      // Not left to the compiler: an item has the same squares on either side, and so the same scale.
      return ::fmaf(x.w, x.w, ::fmaf(x.z, x.z, ::fmaf(x.y, x.y, x.x * x.x)));
    } else {
      const uint4 x = *reinterpret_cast<const uint4*>(unit);
      return arithmetic.dtype == Dtype::kBFloat16 ? of_units<Dtype::kBFloat16>(x) : of_units<Dtype::kFloat16>(x);
    }
  }
  template <Dtype dtype>
  CCP_DEVICE static float of_units(const uint4& x) {
    return of_two<dtype>(x.x) + of_two<dtype>(x.y) + of_two<dtype>(x.z) + of_two<dtype>(x.w);
  }
  template <Dtype dtype>
  CCP_DEVICE static float of_two(uint32_t two) {
    const float low = lower_half<dtype>(two), high = upper_half<dtype>(two);
    return low * low + high * high;
  }

  float sums_[kRounds] = {};
};

}  // namespace cuda
}  // namespace ccp
