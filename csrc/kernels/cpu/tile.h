// The arithmetic of one tile: kTileRows rows × up to kTileColumns columns.
//
// All three products of a loss, X = R·Aᵀ, dR = G·A and dA = Gᵀ·R, have the form
//     out[p][:] (+)= Σ_k coefficient(p, k) · vector(k)[:]
// with whole vectors along the last axis, and share one register-blocked kernel: P broadcast numbers times Q vectors
// per step, P·Q accumulators that never leave the registers (24 of the 32 registers of AVX-512 and NEON, 12 of 16
// elsewhere).
#pragma once

#include "kernels/cpu/panel.h"

namespace ccp {
namespace CCP_CAPABILITY {

constexpr int64_t kTileRows = 64;
constexpr int64_t kTileColumns = 64;

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kRegisterVectors = 4;
#else
constexpr int kRegisterVectors = 2;
#endif
constexpr int kRegisterRows = 6;

template <class T, int P, int Q, class Coefficient, class Vector, class Out>
CCP_HD void multiply_block(int64_t depth, bool accumulate, const Coefficient& coefficient, const Vector& vector,
                           const Out& out) {
  constexpr int L = kLanes<T>;
  Vec<T> sum[P][Q];
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p)
#pragma GCC unroll 4
    for (int q = 0; q < Q; ++q) sum[p][q] = accumulate ? load(out(p) + q * L) : Vec<T>{};
  for (int64_t k = 0; k < depth; ++k) {
    const T* v = vector(k);
    Vec<T> x[Q];
#pragma GCC unroll 4
    for (int q = 0; q < Q; ++q) x[q] = load(v + q * L);
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) {
      const Vec<T> c = broadcast(coefficient(p, k));
#pragma GCC unroll 4
      for (int q = 0; q < Q; ++q) sum[p][q] += c * x[q];
    }
  }
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p)
#pragma GCC unroll 4
    for (int q = 0; q < Q; ++q) store(out(p) + q * L, sum[p][q]);
}

template <class T, int Q, class Coefficient, class Vector, class Out>
CCP_HD void multiply_rows(int64_t rows, int64_t depth, bool accumulate, const Coefficient& coefficient,
                          const Vector& vector, const Out& out) {
  int64_t p0 = 0;
  for (; p0 + kRegisterRows <= rows; p0 += kRegisterRows)
    multiply_block<T, kRegisterRows, Q>(
        depth, accumulate, [&](int p, int64_t k) { return coefficient(p0 + p, k); }, vector,
        [&](int p) { return out(p0 + p); });
  for (; p0 < rows; ++p0)
    multiply_block<T, 1, Q>(
        depth, accumulate, [&](int, int64_t k) { return coefficient(p0, k); }, vector, [&](int) { return out(p0); });
}

// out(p)[0 .. vectors·lanes) (+)= Σ_k coefficient(p, k) · vector(k)[0 .. vectors·lanes)  for p in [0, rows)
template <class T, class Coefficient, class Vector, class Out>
inline void multiply(int64_t rows, int64_t vectors, int64_t depth, bool accumulate, const Coefficient& coefficient,
                     const Vector& vector, const Out& out) {
  constexpr int L = kLanes<T>;
  int64_t q0 = 0;
  for (; q0 + kRegisterVectors <= vectors; q0 += kRegisterVectors)
    multiply_rows<T, kRegisterVectors>(
        rows, depth, accumulate, coefficient, [&](int64_t k) { return vector(k) + q0 * L; },
        [&](int64_t p) { return out(p) + q0 * L; });
  for (; q0 < vectors; ++q0)
    multiply_rows<T, 1>(
        rows, depth, accumulate, coefficient, [&](int64_t k) { return vector(k) + q0 * L; },
        [&](int64_t p) { return out(p) + q0 * L; });
}

// A block of at most kTileRows rows, with a transposed copy so that a vector holds one coordinate of many rows.
template <class T>
struct RowBlock {
  Panel<T> panel;  // padded to kTileRows
  T* transposed;   // [dim, kTileRows]
  int64_t count;

  int64_t vectors() const { return (count + kLanes<T> - 1) / kLanes<T>; }
};

template <class T>
inline void transpose_rows(const RowBlock<T>& block, int64_t dim) {
  for (int64_t d = 0; d < dim; ++d)
    for (int64_t i = 0; i < kTileRows; ++i)
      block.transposed[d * kTileRows + i] = block.panel.values[i * block.panel.stride + d];
}

template <class T>
inline double squared_distance(const T* a, const T* b, int64_t width) {
  Vec<T> sum{};
  for (int64_t d = 0; d < width; d += kLanes<T>) {
    const Vec<T> difference = load(a + d) - load(b + d);
    sum = sum + difference * difference;
  }
  return sum_lanes<T>(sum);
}

// ‖a‖² + ‖r‖² - 2a·r cancels for close pairs, and so does the gradient's g·a - g·r; that is where both matter most. A
// pair closer than 1/8 of the vectors' own size is computed from the differences; such pairs are rare (its own class),
// so this costs little.
template <class T>
CCP_HD Mask<T> close_pairs(Vec<T> squared, const RowBlock<T>& rows, int64_t v, const Panel<T>& columns, int64_t j) {
  const Vec<T> size = load(rows.panel.squared_norm + v * kLanes<T>) + columns.squared_norm[j];
  return squared < size * T(1.0 / 64);
}

// x[j·kTileRows + i] = the metric between row i and column j.
template <class T>
inline void compute_tile(Metric metric, const RowBlock<T>& rows, const Panel<T>& columns, int64_t dim, T* x) {
  constexpr int L = kLanes<T>;
  const int64_t vectors = rows.vectors();
  multiply<T>(
      columns.count, vectors, dim, false, [&](int64_t j, int64_t d) { return columns.values[j * columns.stride + d]; },
      [&](int64_t d) { return rows.transposed + d * kTileRows; }, [&](int64_t j) { return x + j * kTileRows; });
  if (metric == Metric::kDot) return;

  for (int64_t j = 0; j < columns.count; ++j) {
    for (int64_t v = 0; v < vectors; ++v) {
      T* out = x + j * kTileRows + v * L;
      const Vec<T> size = load(rows.panel.squared_norm + v * L) + columns.squared_norm[j];
      Vec<T> squared = size - load(out) * T(2);
      const Mask<T> close = close_pairs(squared, rows, v, columns, j);
      if (any(close)) {
        for (int i = 0; i < L; ++i)
          if (close[i])
            squared[i] = T(squared_distance(rows.panel.values + (v * L + i) * rows.panel.stride,
                                            columns.values + j * columns.stride, columns.width));
      }
      store(out, metric == Metric::kDistance ? sqrt(squared) : squared);
    }
  }
}

// Adds the gradient pull · (row - column) of a pair to its row's and takes it off its column's, either of which may be
// nullptr.
template <class T>
inline void add_difference(T pull, const T* row, const T* column, int64_t width, T* row_gradient, T* column_gradient) {
  for (int64_t d = 0; d < width; d += kLanes<T>) {
    const Vec<T> force = (load(row + d) - load(column + d)) * pull;
    if (row_gradient) store(row_gradient + d, load(row_gradient + d) + force);
    if (column_gradient) store(column_gradient + d, load(column_gradient + d) - force);
  }
}

// out[j] += Σ_i g_ij · row i, for the columns j = touched[0..count).
template <class T>
inline void add_rows_to_columns(const T* g, const RowBlock<T>& rows, const int64_t* touched, int64_t count, T* out,
                                int64_t stride) {
  multiply<T>(
      count, rows.panel.width / kLanes<T>, rows.count, true,
      [&](int64_t p, int64_t i) { return g[touched[p] * kTileRows + i]; },
      [&](int64_t i) { return rows.panel.values + i * stride; }, [&](int64_t p) { return out + touched[p] * stride; });
}

// out[i] += Σ_j g_ij · column j, over the columns j = touched[0..count).
template <class T>
inline void add_columns_to_rows(const T* g, const Panel<T>& columns, const int64_t* touched, int64_t count, T* out,
                                int64_t rows) {
  multiply<T>(
      rows, columns.width / kLanes<T>, count, true, [&](int64_t p, int64_t k) { return g[touched[k] * kTileRows + p]; },
      [&](int64_t k) { return columns.values + touched[k] * columns.stride; },
      [&](int64_t p) { return out + p * columns.stride; });
}

}  // namespace CCP_CAPABILITY
}  // namespace ccp
