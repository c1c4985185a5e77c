// A streaming thread's share of a tile: it loads its elements of the three arrays, then steps, which leaves the squared
// differences in shared memory and the new gradient in its place. Every operation is rounded by itself.
//
// Two kinds with the same members:
//   kEach, kRun       elements it has, and how many of them in a row
//   Value             float or double, what it computes in
//   converts(entry)   is any array of another type than Value?
//   load(chunk, tile)               tile: the tile's first element, counted in the chunk
//   step(chunk, tile, lam, squares)
// Nothing of an element is read after it may have been written: grad may be param.
#pragma once

#include <type_traits>

#include "common/convert.h"
#include "kernels/cuda/projection_grad/ordered_sum.cuh"
#include "kernels/cuda/projection_grad/table.h"

namespace ccp {
namespace cuda {
namespace projection {

using namespace generic;  // common/convert.h

CCP_DEVICE float stepped(float grad, float param, float previous, float lam) {
  return __fadd_rn(grad, __fmul_rn(__fsub_rn(param, previous), lam));
}
CCP_DEVICE double stepped(double grad, double param, double previous, double lam) {
  return __dadd_rn(grad, __dmul_rn(__dsub_rn(param, previous), lam));
}
CCP_DEVICE double squared_difference(double param, double previous) {
  const double difference = __dsub_rn(param, previous);
  return __dmul_rn(difference, difference);
}

template <Dtype dtype>
struct Stored;
template <>
struct Stored<Dtype::kFloat32> {
  using Bits = float;
  using Value = float;
  static CCP_DEVICE Value read(Bits x) { return x; }
  static CCP_DEVICE Bits write(Value x) { return x; }
};
template <>
struct Stored<Dtype::kFloat64> {
  using Bits = double;
  using Value = double;
  static CCP_DEVICE Value read(Bits x) { return x; }
  static CCP_DEVICE Bits write(Value x) { return x; }
};
template <>
struct Stored<Dtype::kBFloat16> {
  using Bits = uint16_t;
  using Value = float;
  static CCP_DEVICE Value read(Bits x) { return bfloat16_to_float(x); }
  static CCP_DEVICE Bits write(Value x) { return float_to_bfloat16(x); }
};
template <>
struct Stored<Dtype::kFloat16> {
  using Bits = uint16_t;
  using Value = float;
  static CCP_DEVICE Value read(Bits x) { return half_to_float(x); }
  static CCP_DEVICE Bits write(Value x) { return float_to_half(x); }
};

constexpr int kVectorBytes = 16;

// Three arrays of one type, aligned: consecutive elements, 16 bytes of each. Past the chunk's end are zeros, whose
// squares add nothing.
template <Dtype dtype>
struct Vector {
  using Type = Stored<dtype>;
  using Bits = typename Type::Bits;
  using Value = typename Type::Value;
  static constexpr int kEach = kVectorBytes / int(sizeof(Bits));
  static constexpr int kRun = kEach;
  struct Some {
    Bits at[kEach];
  };
  using Word = std::conditional_t<sizeof(Bits) == 2, uint32_t, Bits>;
  struct alignas(kVectorBytes) [[gnu::may_alias]] Raw {
    Word at[kVectorBytes / sizeof(Word)];
  };
  Raw grad = {}, param, previous;

  static CCP_DEVICE bool converts(const Entry&) { return !std::is_same<Bits, Value>::value; }

  CCP_DEVICE void load(const Chunk& chunk, int tile) {
    const int first = tile + int(threadIdx.x) * kEach;
    param = load(chunk.entry.param, chunk, first);
    previous = load(chunk.entry.previous, chunk, first);
    if (chunk.entry.grad) grad = load(chunk.entry.grad, chunk, first);
  }

  CCP_DEVICE void step(const Chunk& chunk, int tile, Value lam, double* squares) const {
    const Some w = bit_cast<Some>(param), v = bit_cast<Some>(previous);
    Some g = bit_cast<Some>(grad);
    for (int i = 0; i < kEach; ++i) {
      const Value now = Type::read(w.at[i]), before = Type::read(v.at[i]);
      squares[i * Layout<kRun>::kPlane + int(threadIdx.x)] = squared_difference(now, before);
      g.at[i] = Type::write(stepped(Type::read(g.at[i]), now, before, lam));
    }
    if (chunk.entry.grad) store(g, chunk, tile + int(threadIdx.x) * kEach);
  }

 private:
  static CCP_DEVICE Raw load(const void* array, const Chunk& chunk, int first) {
    const Bits* from = static_cast<const Bits*>(array) + chunk.begin + first;
    if (first + kEach <= chunk.n) return *reinterpret_cast<const Raw*>(from);
    Some some;
    for (int i = 0; i < kEach; ++i) some.at[i] = first + i < chunk.n ? from[i] : Bits(0);
    return bit_cast<Raw>(some);
  }

  static CCP_DEVICE void store(const Some& some, const Chunk& chunk, int first) {
    Bits* to = static_cast<Bits*>(chunk.entry.grad) + chunk.begin + first;
    if (first + kEach <= chunk.n) {
      *reinterpret_cast<Raw*>(to) = bit_cast<Raw>(some);
    } else {
      for (int i = 0; i < kEach; ++i)
        if (first + i < chunk.n) to[i] = some.at[i];
    }
  }
};

// Any mix of types, any alignment: elements one by one, neighbours by neighbouring threads.
template <class T>
struct Elements {
  using Value = T;
  static constexpr int kEach = 16 / int(sizeof(T));
  static constexpr int kRun = 1;
  T grad[kEach], param[kEach], previous[kEach];

  static CCP_DEVICE bool converts(const Entry& e) {
    const Dtype own = std::is_same<T, double>::value ? Dtype::kFloat64 : Dtype::kFloat32;
    return Dtype(e.param_dtype) != own || Dtype(e.previous_dtype) != own || (e.grad && Dtype(e.grad_dtype) != own);
  }

  CCP_DEVICE void load(const Chunk& chunk, int tile) {
    const Entry& e = chunk.entry;
    for (int i = 0; i < kEach; ++i) {
      const int at = tile + i * kStreamers + int(threadIdx.x);
      const bool inside = at < chunk.n;
      param[i] = inside ? read(e.param, e.param_dtype, chunk.begin + at) : T(0);
      previous[i] = inside ? read(e.previous, e.previous_dtype, chunk.begin + at) : T(0);
      grad[i] = inside && e.grad ? read(e.grad, e.grad_dtype, chunk.begin + at) : T(0);
    }
  }

  CCP_DEVICE void step(const Chunk& chunk, int tile, T lam, double* squares) const {
    const Entry& e = chunk.entry;
    for (int i = 0; i < kEach; ++i) {
      const int in_tile = i * kStreamers + int(threadIdx.x), at = tile + in_tile;
      squares[in_tile] = squared_difference(param[i], previous[i]);
      if (at < chunk.n && e.grad)
        write(stepped(grad[i], param[i], previous[i], lam), e.grad, e.grad_dtype, chunk.begin + at);
    }
  }

 private:
  static CCP_DEVICE T read(const void* array, uint8_t dtype, int64_t i) {
    switch (Dtype(dtype)) {
      case Dtype::kFloat32:
        return T(static_cast<const float*>(array)[i]);
      case Dtype::kFloat64:
        return T(static_cast<const double*>(array)[i]);
      case Dtype::kBFloat16:
        return T(bfloat16_to_float(static_cast<const uint16_t*>(array)[i]));
      default:
        return T(half_to_float(static_cast<const uint16_t*>(array)[i]));
    }
  }

  static CCP_DEVICE void write(T x, void* array, uint8_t dtype, int64_t i) {
    switch (Dtype(dtype)) {
      case Dtype::kFloat32:
        static_cast<float*>(array)[i] = float(x);
        return;
      case Dtype::kFloat64:
        static_cast<double*>(array)[i] = double(x);
        return;
      case Dtype::kBFloat16:
        static_cast<uint16_t*>(array)[i] = float_to_bfloat16(float(x));
        return;
      default:
        static_cast<uint16_t*>(array)[i] = float_to_half(float(x));
        return;
    }
  }
};

}  // namespace projection
}  // namespace cuda
}  // namespace ccp
