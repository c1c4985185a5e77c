// What the k-center kernels are told, and how they find a segment's vectors.
#pragma once

#include "kernels/cuda/farthest_points.h"
#include "kernels/cuda/farthest_points/arithmetic.cuh"

namespace ccp {
namespace cuda {
namespace k_center {

struct Job {
  RaggedVectors points, seeds;
  int64_t segments, largest_segment, k;
  int dim;
  int64_t stride;  // of vectors in scratch memory
  Normalize normalize;
  bool pad;
  int64_t* indices;
  void* radii;
  int64_t large_elements;
  void* nearest;  // [points.rows] of those segments that are not kept in shared memory
  void* scales;   // [points.rows], likewise; nullptr without normalisation
};

struct Span {
  int64_t begin, count;
};
struct Segment {
  int64_t index;
  Span points, seeds;  // rows
};

CCP_DEVICE Span span_of(const RaggedVectors& vectors, int64_t s) {
  if (!vectors.offsets) return {0, 0};
  const auto cut = [&](int64_t at, int64_t least) {
    return at < least ? least : at > vectors.rows ? vectors.rows : at;
  };
  const int64_t begin = cut(vectors.offsets[s], 0);
  return {begin, cut(vectors.offsets[s + 1], begin) - begin};
}

CCP_DEVICE Segment segment_of(const Job& job, int64_t s) {
  Span points = span_of(job.points, s);
  if (points.count > job.largest_segment) points.count = job.largest_segment;
  return {s, points, span_of(job.seeds, s)};
}

CCP_DEVICE bool is_large(const Job& job, const Segment& segment) {
  return segment.points.count > 0 && segment.points.count * job.dim >= job.large_elements;
}

template <class F>
CCP_DEVICE Row<F> raw_row(const Job& job, const RaggedVectors& vectors, int64_t row) {
  return {static_cast<const typename F::Element*>(vectors.data) + row * job.dim, job.dim, 1};
}

// A point, once its scale is known.
template <class F>
CCP_DEVICE Row<F> scaled_point(const Job& job, int64_t row) {
  Row<F> point = raw_row<F>(job, job.points, row);
  if (job.scales) point.scale = static_cast<const typename F::T*>(job.scales)[row];
  return point;
}

// A point's scale, kept for scaled_point() as of the next barrier, and its rank; 1 and 0 where nobody asks.
template <class F>
CCP_DEVICE Norm<typename F::T> measure_point(const Job& job, int64_t row, bool ranked, bool absent) {
  if (job.normalize == Normalize::kNone && !ranked) return {1, 0};
  const Row<F> point = raw_row<F>(job, job.points, row);
  const auto norm = norm_of(job.normalize, point, squared_norm(point, job.dim));
  if (job.scales && !absent && member_of_quad() == 0) static_cast<typename F::T*>(job.scales)[row] = norm.scale;
  return norm;
}

// stage() for a seed, whose elements are those of points, or numbers as they are computed with.
template <class F>
CCP_DEVICE void stage_seed(const Job& job, int64_t row, bool absent, typename F::T* to) {
  if (job.seeds.dtype == job.points.dtype)
    stage(raw_row<F>(job, job.seeds, row), job.normalize, false, absent, to);
  else
    stage(raw_row<Format<typename F::T, F::kAligned>>(job, job.seeds, row), job.normalize, false, absent, to);
}

// Fills what follows a segment's picks, by `threads` threads of which this is one. The picks have been written.
template <class T>
CCP_DEVICE void fill_up(const Job& job, int64_t s, int64_t picks, int64_t thread, int64_t threads) {
  int64_t* indices = job.indices + s * job.k;
  T* radii = static_cast<T*>(job.radii) + s * job.k;
  for (int64_t i = picks + thread; i < job.k; i += threads) {
    indices[i] = picks == 0 || job.pad ? -1 : indices[i % picks];
    radii[i] = T(0);
  }
}

}  // namespace k_center
}  // namespace cuda
}  // namespace ccp
