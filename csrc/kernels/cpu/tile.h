// The arithmetic of one tile: kTileRows rows × up to kTileColumns columns.
//
// All three products of a loss, X = R·Aᵀ, dR = G·A and dA = Gᵀ·R, have the form
//     out[p][:] (+)= Σ_k coefficient(p, k) · vector(k)[:]
// with whole vectors along the last axis, and share one register-blocked kernel: P broadcast numbers times Q vectors
// per step, P·Q sums that never leave the registers (24 of the 32 registers of AVX-512 and NEON, 12 of 16 elsewhere).
// A step loads P + Q registers for P·Q multiply-adds, and a load that broadcasts costs no more than any other, so the
// multiply-adds alone set the pace. What is left over of P and Q is done by blocks of 4, 2 and 1, of which all but the
// smallest still have sums enough to hide a multiply-add's latency. The vectors of one pass (all k, Q of them) are 16
// to 32 KB in 128-D: they stay in L1 while all p go past, and in larger dimensions L2 keeps up.
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

// The next smaller block, for what is left over.
constexpr int smaller_block(int n) { return n > 4 ? 4 : n / 2; }

// coefficient(p, k) = at[p·row + k·step]
template <class T>
struct Coefficients {
  const T* at;
  int64_t row, step;
};

template <class T, int P, int Q, class Vector, class Out>
CCP_HD void multiply_block(int64_t depth, bool accumulate, Coefficients<T> coefficients, Vector vector, Out out) {
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
      const Vec<T> c = broadcast(coefficients.at[p * coefficients.row]);
#pragma GCC unroll 4
      for (int q = 0; q < Q; ++q) sum[p][q] += c * x[q];
    }
    coefficients.at += coefficients.step;
  }
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p)
#pragma GCC unroll 4
    for (int q = 0; q < Q; ++q) store(out(p) + q * L, sum[p][q]);
}

// Memory that will be needed soon, to be fetched while multiplications keep the core busy: a few cache lines with each
// of their full blocks, since more at once would only wait for each other.
class Prefetch {
 public:
  Prefetch() : at_(nullptr), end_(nullptr), lines_(0) {}
  // Within so many steps.
  Prefetch(const void* begin, int64_t bytes, int64_t steps)
      : at_(static_cast<const char*>(begin)), end_(at_ + bytes), lines_(bytes / (kLine * steps) + 1) {}

  CCP_HD void step() {
    for (int64_t i = 0; i < lines_ && at_ < end_; ++i, at_ += kLine) __builtin_prefetch(at_);
  }

 private:
  static constexpr int64_t kLine = 64;
  const char *at_, *end_;
  int64_t lines_;
};

template <class T, int P, int Q, class Vector, class Out>
CCP_HD void multiply_rows(int64_t p0, int64_t rows, int64_t depth, bool accumulate, Coefficients<T> coefficients,
                          Vector vector, Out out, Prefetch* prefetch) {
  for (; p0 + P <= rows; p0 += P) {
    if (P == kRegisterRows && prefetch) prefetch->step();
    multiply_block<T, P, Q>(depth, accumulate,
                            {coefficients.at + p0 * coefficients.row, coefficients.row, coefficients.step}, vector,
                            [=](int p) { return out(p0 + p); });
  }
  if constexpr (P > 1)
    multiply_rows<T, smaller_block(P), Q>(p0, rows, depth, accumulate, coefficients, vector, out, prefetch);
}

template <class T, int Q, class Vector, class Out>
CCP_HD void multiply_vectors(int64_t q0, int64_t vectors, int64_t rows, int64_t depth, bool accumulate,
                             Coefficients<T> coefficients, Vector vector, Out out, Prefetch* prefetch) {
  constexpr int L = kLanes<T>;
  for (; q0 + Q <= vectors; q0 += Q)
    multiply_rows<T, kRegisterRows, Q>(
        0, rows, depth, accumulate, coefficients, [=](int64_t k) { return vector(k) + q0 * L; },
        [=](int64_t p) { return out(p) + q0 * L; }, prefetch);
  if constexpr (Q > 1)
    multiply_vectors<T, smaller_block(Q)>(q0, vectors, rows, depth, accumulate, coefficients, vector, out, prefetch);
}

// out(p)[0 .. vectors·lanes) (+)= Σ_k coefficient(p, k) · vector(k)[0 .. vectors·lanes)  for p in [0, rows)
// A function of its own: inlined among other code, GCC runs out of registers and keeps sums in memory.
template <class T, class Vector, class Out>
__attribute__((noinline)) void multiply(int64_t rows, int64_t vectors, int64_t depth, bool accumulate,
                                        Coefficients<T> coefficients, Vector vector, Out out, Prefetch* prefetch) {
  multiply_vectors<T, kRegisterVectors>(0, vectors, rows, depth, accumulate, coefficients, vector, out, prefetch);
}

// A block of at most kTileRows rows, with a transposed copy so that a vector holds one coordinate of many rows.
template <class T>
struct RowBlock {
  Panel<T> panel;  // padded to kTileRows
  T* transposed;   // [dim, kTileRows]
  int64_t count;

  int64_t vectors() const { return (count + kLanes<T> - 1) / kLanes<T>; }
};

// Interleaving the first half of a square's rows with the second transposes it when done log2(rows) times.
template <class T>
inline void transpose_rows(const RowBlock<T>& block, int64_t dim) {
  constexpr int L = kLanes<T>;
  for (int64_t i0 = 0; i0 < kTileRows; i0 += L)
    for (int64_t d0 = 0; d0 < dim; d0 += L) {
      Vec<T> square[L], mixed[L];
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i) square[i] = load(block.panel.values + (i0 + i) * block.panel.stride + d0);
#pragma GCC unroll 4
      for (int rounds = 1; rounds < L; rounds *= 2) {
#pragma GCC unroll 8
        for (int i = 0; i < L / 2; ++i) {
          mixed[2 * i] = interleave<false>(square[i], square[i + L / 2]);
          mixed[2 * i + 1] = interleave<true>(square[i], square[i + L / 2]);
        }
#pragma GCC unroll 16
        for (int i = 0; i < L; ++i) square[i] = mixed[i];
      }
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i)
        if (d0 + i < dim) store(block.transposed + (d0 + i) * kTileRows + i0, square[i]);
    }
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
// pair with d² < (‖a‖² + ‖r‖²)/64 is computed from the differences; such pairs are rare (its own class), so this costs
// little.
template <class V>
CCP_HD bool any_close(V squared, V size) {
  return any_less(squared, size * (1.0f / 64));
}
template <class V>
CCP_HD auto close_pairs(V squared, V size) {
  return squared < size * (1.0f / 64);
}

// The squared distances of vector v of the rows and column j, those of the close pairs from the differences.
template <class T>
__attribute__((noinline)) Vec<T> measure_close(Vec<T> squared, Mask<T> close, const RowBlock<T>& rows, int64_t v,
                                               const Panel<T>& columns, int64_t j) {
  for (int64_t i = 0; i < kLanes<T>; ++i)
    if (close[i])
      squared[i] = T(squared_distance(rows.panel.values + (v * kLanes<T> + i) * rows.panel.stride,
                                      columns.values + j * columns.stride, columns.width));
  return squared;
}

// x[j·kTileRows + i] = row i · column j
template <class T>
inline void multiply_tile(const RowBlock<T>& rows, const Panel<T>& columns, int64_t dim, T* x,
                          Prefetch* prefetch = nullptr) {
  multiply<T>(
      columns.count, rows.vectors(), dim, false, {columns.values, columns.stride, 1},
      [transposed = rows.transposed](int64_t d) { return transposed + d * kTileRows; },
      [=](int64_t j) { return x + j * kTileRows; }, prefetch);
}

// The metric between vector v of the rows and column j, given their products, and whether any of the pairs is close.
template <class T>
struct Measured {
  Vec<T> x, size;
  bool any_close;
};
template <Metric metric, class T>
CCP_HD Measured<T> measure(Vec<T> product, const RowBlock<T>& rows, int64_t v, const Panel<T>& columns, int64_t j) {
  if constexpr (metric == Metric::kDot) return {product, Vec<T>{}, false};
  const Vec<T> size = load(rows.panel.squared_norm + v * kLanes<T>) + columns.squared_norm[j];
  Vec<T> squared = size - product * T(2);
  const bool close = any_close(squared, size);
  if (close) squared = measure_close(squared, close_pairs(squared, size), rows, v, columns, j);
  return {metric == Metric::kDistance ? sqrt(squared) : squared, size, close};
}

// x[j·kTileRows + i] = the metric between row i and column j.
template <Metric metric, class T>
inline void measure_tile(const RowBlock<T>& rows, const Panel<T>& columns, int64_t dim, T* x) {
  multiply_tile(rows, columns, dim, x);
  for (int64_t j = 0; j < columns.count; ++j)
    for (int64_t v = 0; v < rows.vectors(); ++v) {
      T* cell = x + j * kTileRows + v * kLanes<T>;
      store(cell, measure<metric>(load(cell), rows, v, columns, j).x);
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

// out[j] += Σ_i g_ij · row i, for the columns j = touched[0..count); those of g are packed: g_ij = g[p·kTileRows + i]
// for j = touched[p].
template <class T>
inline void add_rows_to_columns(const T* g, const RowBlock<T>& rows, const int64_t* touched, int64_t count, T* out,
                                int64_t stride, Prefetch* prefetch) {
  multiply<T>(
      count, rows.panel.width / kLanes<T>, rows.count, true, {g, kTileRows, 1},
      [=, values = rows.panel.values](int64_t i) { return values + i * stride; },
      [=](int64_t p) { return out + touched[p] * stride; }, prefetch);
}

// out[i] += Σ_j g_ij · column j, over the columns j = touched[0..count), g packed as above.
template <class T>
inline void add_columns_to_rows(const T* g, const Panel<T>& columns, const int64_t* touched, int64_t count, T* out,
                                int64_t rows, Prefetch* prefetch) {
  multiply<T>(
      rows, columns.width / kLanes<T>, count, true, {g, 1, kTileRows},
      [=, values = columns.values, stride = columns.stride](int64_t k) { return values + touched[k] * stride; },
      [=, stride = columns.stride](int64_t p) { return out + p * stride; }, prefetch);
}

}  // namespace CCP_CAPABILITY
}  // namespace ccp
