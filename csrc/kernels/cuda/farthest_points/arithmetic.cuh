// The arithmetic of k-center on a GPU: components four at a time, sums of squares by four threads.
//
// kernels/cpu/farthest_points.h fixes the order of summation: 16 lanes, then a tree. Four neighbouring threads, a quad,
// work on one vector: member m keeps lanes 4m .. 4m + 3 and reads components 4m .. 4m + 3 of every 16, one load each; a
// warp has eight vectors at a time. Every operation is one that the compiler does not fuse with another.
#pragma once

#include "common/convert.h"
#include "common/cuda.h"
#include "kernels/farthest_points.h"

namespace ccp {
namespace cuda {
namespace k_center {

using generic::k_center::kSumLanes;

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarp;
constexpr int kQuad = 4;
constexpr int kQuadsPerWarp = kWarp / kQuad;
constexpr int kQuads = kWarps * kQuadsPerWarp;
constexpr int kSeedBatch = 4;  // centres that a point is measured against with one reading of it

CCP_DEVICE int lane_of_thread() { return int(threadIdx.x) % kWarp; }
CCP_DEVICE int warp_of_thread() { return int(threadIdx.x) / kWarp; }
CCP_DEVICE int member_of_quad() { return int(threadIdx.x) % kQuad; }

// Elements ------------------------------------------------------------------------------------------------------------

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};
CCP_DEVICE float widen(float x) { return x; }
CCP_DEVICE double widen(double x) { return x; }
CCP_DEVICE float widen(BFloat16 x) { return generic::bfloat16_to_float(x.bits); }
CCP_DEVICE float widen(Float16 x) { return generic::half_to_float(x.bits); }

// How vectors lie in memory: which elements, computed with in T, and whether four of them may be loaded at once.
template <class Element_, bool kAligned_>
struct Format {
  using Element = Element_;
  using T = decltype(widen(Element{}));
  static constexpr bool kAligned = kAligned_;
};

CCP_DEVICE float plus(float a, float b) { return __fadd_rn(a, b); }
CCP_DEVICE float minus(float a, float b) { return __fsub_rn(a, b); }
CCP_DEVICE float times(float a, float b) { return __fmul_rn(a, b); }
CCP_DEVICE double plus(double a, double b) { return __dadd_rn(a, b); }
CCP_DEVICE double minus(double a, double b) { return __dsub_rn(a, b); }
CCP_DEVICE double times(double a, double b) { return __dmul_rn(a, b); }

template <class T>
struct alignas(sizeof(T) < 4 ? 8 : 16) Four {
  T v[kQuad];
};

template <class T>
CCP_DEVICE Four<T> load(const T* from) {
  return *reinterpret_cast<const Four<T>*>(from);
}
template <class T>
CCP_DEVICE void store(T* to, const Four<T>& x) {
  *reinterpret_cast<Four<T>*>(to) = x;
}

// Vectors: four(d) is components d .. d + 3, for d a multiple of 4, with zeros behind the last one ------------------------

// In memory as it came, to be multiplied by a scale.
template <class F>
struct Row {
  using T = typename F::T;
  const typename F::Element* data;
  int dim;
  T scale;

  CCP_DEVICE T raw(int d) const { return widen(data[d]); }
  CCP_DEVICE Four<T> four(int d) const {
    Four<T> x;
    if constexpr (F::kAligned) {
      const auto elements = load(data + d);
#pragma unroll
      for (int i = 0; i < kQuad; ++i) x.v[i] = times(widen(elements.v[i]), scale);
    } else {
#pragma unroll
      for (int i = 0; i < kQuad; ++i) x.v[i] = d + i < dim ? times(raw(d + i), scale) : T(0);
    }
    return x;
  }
};

// Widened, scaled and padded with zeros to a multiple of 4.
template <class T_>
struct StagedRow {
  using T = T_;
  const T* data;
  CCP_DEVICE Four<T> four(int d) const { return load(data + d); }
};

// Sums ----------------------------------------------------------------------------------------------------------------

template <class T>
CCP_DEVICE void add_square(Four<T>& sum, const Four<T>& x) {
#pragma unroll
  for (int i = 0; i < kQuad; ++i) sum.v[i] = plus(sum.v[i], times(x.v[i], x.v[i]));
}

template <class T>
CCP_DEVICE Four<T> difference(const Four<T>& a, const Four<T>& b) {
  Four<T> out;
#pragma unroll
  for (int i = 0; i < kQuad; ++i) out.v[i] = minus(a.v[i], b.v[i]);
  return out;
}

// The tree over a quad's 16 lanes, by the whole warp; every member gets the sum. While members have several lanes left,
// they hand each other those that the other goes on with.
template <class T>
CCP_DEVICE T fold(const Four<T>& lanes) {
  const bool high = member_of_quad() & 2, odd = member_of_quad() & 1;
  const T kept0 = high ? lanes.v[2] : lanes.v[0], given0 = high ? lanes.v[0] : lanes.v[2];
  const T kept1 = high ? lanes.v[3] : lanes.v[1], given1 = high ? lanes.v[1] : lanes.v[3];
  const T a = plus(kept0, __shfl_xor_sync(kFullWarp, given0, 2));  // lanes l and l + 8
  const T b = plus(kept1, __shfl_xor_sync(kFullWarp, given1, 2));
  T sum = plus(odd ? b : a, __shfl_xor_sync(kFullWarp, odd ? a : b, 1));  // l and l + 4
  sum = plus(sum, __shfl_xor_sync(kFullWarp, sum, 2));
  return plus(sum, __shfl_xor_sync(kFullWarp, sum, 1));
}

template <class Vector>
CCP_DEVICE typename Vector::T squared_norm(const Vector& x, int dim) {
  Four<typename Vector::T> sum{};
#pragma unroll 4
  for (int d = kQuad * member_of_quad(); d < dim; d += kSumLanes) add_square(sum, x.four(d));
  return fold(sum);
}

// out[c] = ‖x − centres[c]‖², where centres lie `stride` apart, padded as StagedRow.
template <int kCentres, class Vector, class T>
CCP_DEVICE void squared_distances(const Vector& x, const T* centres, int64_t stride, int dim, T (&out)[kCentres]) {
  Four<T> sum[kCentres] = {};
#pragma unroll(kCentres > 1 ? 2 : 4)
  for (int d = kQuad * member_of_quad(); d < dim; d += kSumLanes) {
    const Four<T> here = x.four(d);
#pragma unroll
    for (int c = 0; c < kCentres; ++c) add_square(sum[c], difference(load(centres + c * stride + d), here));
  }
#pragma unroll
  for (int c = 0; c < kCentres; ++c) out[c] = fold(sum[c]);
}

// Where a distance came out as NaN: equal components, infinite ones too, are no distance apart. Still NaN only if a
// component is; `norm` is NaN if one of x is.
template <class Vector, class T>
CCP_DEVICE T squared_distance_beyond_finite(const Vector& x, const T* centre, int dim, T& norm) {
  Four<T> sum{}, squares{};
#pragma unroll 1
  for (int d = kQuad * member_of_quad(); d < dim; d += kSumLanes) {
    const Four<T> a = load(centre + d), b = x.four(d);
    Four<T> apart = difference(a, b);
#pragma unroll
    for (int i = 0; i < kQuad; ++i) apart.v[i] = a.v[i] == b.v[i] ? T(0) : apart.v[i];
    add_square(sum, apart);
    add_square(squares, b);
  }
  norm = fold(squares);
  return fold(sum);
}

// Points --------------------------------------------------------------------------------------------------------------

// What `nearest` holds for a point: its squared distance to the nearest centre, or one of these.
template <class T>
constexpr T kPicked = T(-1);
template <class T>
constexpr T kUnusable = T(-0.5);  // see farthest_points.h: behind every distance, before the picked ones

template <class T>
CCP_DEVICE T infinity() {
  return T(__builtin_inf());
}

// The candidate for the next pick. The index exists even where there is none.
template <class T>
struct Farthest {
  T distance = kPicked<T>;
  int64_t index = 0;

  CCP_DEVICE void join(T other, int64_t i) {
    if (other > distance || (other == distance && i < index)) {
      distance = other;
      index = i;
    }
  }
};

template <class T>
CCP_DEVICE Farthest<T> farthest_in_warp(Farthest<T> best) {
#pragma unroll
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) {
    const T distance = __shfl_xor_sync(kFullWarp, best.distance, lanes);
    const int64_t index = __shfl_xor_sync(kFullWarp, best.index, lanes);
    best.join(distance, index);
  }
  return best;
}

template <class T>
CCP_DEVICE T radius_of(const Farthest<T>& next) {
  return next.distance > 0 ? ::sqrt(next.distance) : T(0);
}

// Brings `nearest` and `owner` of point x up to date with some centres, numbered from `id`. By the whole warp.
template <int kCentres, class Vector, class T>
CCP_DEVICE void approach(const Vector& x, const T* centres, int64_t stride, int dim, uint32_t id, T& nearest,
                         uint32_t& owner) {
  const auto compare = [&](T distance, int c) {
    if (distance < nearest) {
      nearest = distance;
      owner = id + uint32_t(c);
    }
  };
  T distance[kCentres];
  squared_distances(x, centres, stride, dim, distance);
  bool nan = false;
#pragma unroll
  for (int c = 0; c < kCentres; ++c) nan = nan || distance[c] != distance[c];
  if (!__any_sync(kFullWarp, nan)) {
#pragma unroll
    for (int c = 0; c < kCentres; ++c) compare(distance[c], c);
    return;
  }
#pragma unroll 1
  for (int c = 0; c < kCentres; ++c) {
    T norm;
    const T resolved = squared_distance_beyond_finite(x, centres + c * stride, dim, norm);
    if (norm != norm && nearest >= 0) nearest = kUnusable<T>;
    compare(resolved, c);
  }
}

// What follows from ‖row‖²: the factor of its components, and what a first pick goes by.
template <class T>
struct Norm {
  T scale, rank;
};

template <class F, class T>
CCP_DEVICE Norm<T> norm_of(Normalize normalize, const Row<F>& row, T squares) {
  T scale(1);
  if (normalize != Normalize::kNone) {
    double exact = squares;
    if (!generic::k_center::in_range(exact)) {
      exact = 0;
#pragma unroll 1
      for (int d = 0; d < row.dim; ++d) exact = plus(exact, times(double(row.raw(d)), double(row.raw(d))));
    }
    scale = generic::k_center::scale_of<T>(normalize, exact);
  }
  const bool usable = squares == squares && scale == scale;
  return {scale, usable ? generic::k_center::norm_rank(normalize, squares, scale) : kUnusable<T>};
}

// Copies a row to `to`, widened, normalised and padded to a multiple of 4, unless it is `absent`; returns its rank, or
// 0 where nobody asks. By the whole warp; each thread writes those components that it reads as a member of its quad.
template <class F, class T>
CCP_DEVICE T stage(const Row<F>& row, Normalize normalize, bool ranked, bool absent, T* to) {
  // No load overtakes a store, which for all the compiler knows may go to the same place: so, many loads at a time.
  constexpr int kAtOnce = F::kAligned ? 8 : 4;
  Four<T> sum{};
  for (int first = kQuad * member_of_quad(); first < row.dim; first += kAtOnce * kSumLanes) {
    const auto exists = [&](int i) { return first + i * kSumLanes < row.dim; };
    Four<T> x[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) x[i] = row.four(exists(i) ? first + i * kSumLanes : first);
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (!exists(i)) continue;
      add_square(sum, x[i]);
      if (!absent) store(to + first + i * kSumLanes, x[i]);
    }
  }
  if (normalize == Normalize::kNone && !ranked) return T(0);
  const Norm<T> norm = norm_of(normalize, row, fold(sum));
  if (norm.scale == T(1) || absent) return norm.rank;
  for (int d = kQuad * member_of_quad(); d < row.dim; d += kSumLanes) {
    Four<T> x = load(to + d);
#pragma unroll
    for (int i = 0; i < kQuad; ++i) x.v[i] = times(x.v[i], norm.scale);
    store(to + d, x);
  }
  return norm.rank;
}

}  // namespace k_center
}  // namespace cuda
}  // namespace ccp
