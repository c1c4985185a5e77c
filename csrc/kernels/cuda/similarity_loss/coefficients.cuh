// From a tile's pairs to gradients: d loss / d x of each pair becomes the coefficients W of a product of matrices.
//
// For x a dot product, d x / d ô = ŝ; for a distance, (ô - ŝ) / d; for a squared distance, 2 (ô - ŝ). So the gradient
// with respect to the normalised owned vector is  Σ_s w_os ŝ + along · ô, with along = 0 or -Σ_s w_os, and the same
// with o and s exchanged; close pairs, in which these two would cancel, add w_os (ŝ - ô) instead.
#pragma once

#include "kernels/cuda/similarity_loss/components.cuh"
#include "kernels/cuda/similarity_loss/groups.cuh"
#include "kernels/cuda/similarity_loss/infos.cuh"
#include "kernels/cuda/similarity_loss/row.cuh"

namespace ccp {
namespace cuda {

constexpr int kGradientOwner = 64;
using GradientPairs = TilePairs<kGradientOwner>;

// A warp has 16 owned items and half the components of a chunk.
template <class T>
constexpr int kOutN = kChunk<T> / kWarpColumns / 8;

// What kernels of gradients are told of the loss.
struct GradientInputs {
  int64_t dim;
  Normalize normalize;
  Arithmetic arithmetic;
  bool exclude_diagonal;
  PositivesList positives;
  int64_t rows;
  Reduction reduction;
  const float* grad_loss;
  const float* row_state;
  const double* normalizer;
};

// What grad() needs of each row of a tile: the saved numbers, then the weights of the positive and the negative part.
constexpr int kRowInfo = kSaved + 2;
struct RowInfo {
  float v[kRowInfo][kStreamed];  // an owned tile has as many items
};
static_assert(kGradientOwner == kStreamed, "a row info serves either side");

CCP_DEVICE void load_row_info(const GradientInputs& job, int64_t row, int i, RowInfo& info) {
  const bool real = row >= 0;
#pragma unroll
  for (int k = 0; k < kSaved; ++k) info.v[k][i] = real ? job.row_state[k * job.rows + row] : 0.0f;
  const double grad = real ? job.grad_loss[job.reduction == Reduction::kNone ? row : 0] : 0.0f;
  info.v[kSaved][i] = float(grad / job.normalizer[0]);
  info.v[kSaved + 1][i] = float(grad / job.normalizer[1]);
}

// The coefficients of a tile, in shared memory. Rows are eight words apart in the banks: so the pairs of numbers that
// fragments of W take lie in all banks once, and the numbers that those of Wᵀ take in no more than two rows' each.
constexpr int kCoefficientStride = kStreamed + 8;
struct Coefficients {
  float w[kGradientOwner * kCoefficientStride];
  unsigned close[kStreamed / 32][kGradientOwner];  // a bit for each streamed item that is close to this owned one
  int any_close;

  CCP_DEVICE float& at(int o, int s) { return w[o * kCoefficientStride + s]; }
  CCP_DEVICE float at(int o, int s) const { return w[o * kCoefficientStride + s]; }
  CCP_DEVICE bool is_close(int o, int s) const { return close[s / 32][o] >> s % 32 & 1; }
};
static_assert(kStreamed % 32 == 0, "whole words of bits");

// With a loop over the row's positives inside: one copy of it for all of a lane's pairs.
template <class Loss>
CCP_DEVICE_CALL float gradient_with_positives(const Loss& loss, const PositivesList& list, float x, bool same,
                                              float weight, int64_t row, int64_t column) {
  const RowPositives positives(list, row);
  return loss.grad(x, same, weight, positives, same ? positives.ordinal(column) : 0);
}

// d loss / d x of a pair, given the row's own numbers.
template <class Loss>
CCP_DEVICE float pair_gradient(const GradientInputs& job, const Loss& loss, float x, bool same, const RowInfo& info,
                               int r, int64_t row, int64_t column) {
  const float pos_weight = info.v[kSaved][r];
  if constexpr (Loss::kUsesPositives) {
    return gradient_with_positives(loss, job.positives, x, same, pos_weight, row, column);
  } else {
    float saved[kSaved];
#pragma unroll
    for (int k = 0; k < kSaved; ++k) saved[k] = info.v[k][r];
    return loss.grad(x, same, saved, pos_weight, info.v[kSaved + 1][r]);
  }
}

// The coefficient of the other vector, from d loss / d x.
template <Metric metric>
CCP_DEVICE float coefficient(float g, float x) {
  if (metric == Metric::kDot) return g;
  if (metric == Metric::kSquaredDistance) return -2 * g;
  return x > 0 ? -g / x : x == 0 ? 0.0f : x;  // no direction at distance 0; NaN stays
}

// Turns similarities into the coefficients of a tile whose groups have to be looked at whole, a thread for each row and
// group.
template <class Loss>
CCP_DEVICE void differentiate_groups(const GradientInputs& job, const Loss& loss, const Side& columns,
                                     bool owner_is_row, const GradientPairs& pairs, const RowInfo& row_info,
                                     Coefficients& coefficients) {
  const GroupSpan span(columns);
  const int step = owner_is_row ? 1 : kCoefficientStride;
  for (int i = int(threadIdx.x); i < kStreamed * kWarpColumns * span.groups; i += kThreads) {
    const int r = i % kStreamed, first = span.first(i / kStreamed);
    const int o = owner_is_row ? r : first, s = owner_is_row ? first : r;
    const int64_t owner = pairs.owner_info->id[o], streamed = pairs.streamed_info->id[s];
    float* cell = &coefficients.at(o, s);
    const auto group = loss.template group<float>(GroupMembers{cell, step, span.size});
    float g = 0.0f;
    if (owner >= 0 && streamed >= 0 && !(job.exclude_diagonal && owner == streamed))
      g = pair_gradient(job, loss, group.value, pairs.owner_info->label[o] == pairs.streamed_info->label[s], row_info,
                        r, owner_is_row ? owner : streamed, owner_is_row ? streamed : owner);
    for (int k = 0; k < span.size; ++k) {
      float& member = cell[k * step];
      member = g * loss.member_grad(group, member, k);
    }
  }
}

// Turns the dot products of raw vectors into coefficients, and takes those that are not close from along[half], that of
// the lane's owned items. Between barriers; the whole block together. Grouped losses have another barrier inside.
//
// The pairs pass through shared memory even where their own lane goes on with them: so the loss is compiled for kAtOnce
// of a lane's pairs of pairs, and not for all, with every number in a register beside the gradients.
template <int kAtOnce, class Loss>
CCP_DEVICE void differentiate(const GradientInputs& job, const Loss& loss, const Side& columns, bool owner_is_row,
                              const GradientPairs& pairs, const RowInfo& row_info, FragmentD (&x)[1][kN],
                              Coefficients& coefficients, float (&along)[2]) {
  constexpr bool kIsDistance = Loss::kMetric != Metric::kDot;
  const auto two_at = [&](int n, int half) -> float2& {
    return *reinterpret_cast<float2*>(&coefficients.at(pairs.owner_index(0, half * 2), pairs.streamed_index(n, 0)));
  };
  pairs.template measure<Loss::kMetric>(x);
#pragma unroll
  for (int n = 0; n < kN; ++n)
#pragma unroll
    for (int half = 0; half < 2; ++half) two_at(n, half) = {x[0][n].v[half * 2], x[0][n].v[half * 2 + 1]};
  if constexpr (Loss::kGrouped) {
    __syncthreads();
    differentiate_groups(job, loss, columns, owner_is_row, pairs, row_info, coefficients);
  } else {
#pragma unroll kAtOnce
    for (int j = 0; j < kN * 2; ++j) {
      const int n = j / 2, half = j % 2, o = pairs.owner_index(0, half * 2);
      const int64_t owner = pairs.owner_info->id[o], owner_label = pairs.owner_info->label[o];
      const float2 values = two_at(n, half);
      float2 two;
      float not_close = 0.0f;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int s = pairs.streamed_index(n, i);
        const float value = i == 0 ? values.x : values.y;
        const int64_t streamed = pairs.streamed_info->id[s];
        float w = 0.0f;
        if (owner >= 0 && streamed >= 0 && !(job.exclude_diagonal && owner == streamed)) {
          w = coefficient<Loss::kMetric>(
              pair_gradient(job, loss, value, owner_label == pairs.streamed_info->label[s], row_info,
                            owner_is_row ? o : s, owner_is_row ? owner : streamed, owner_is_row ? streamed : owner),
              value);
          if (kIsDistance && w != 0.0f) {
            if (pairs.template is_close<Loss::kMetric>(value, o, s)) {
              atomicOr(&coefficients.close[s / 32][o], 1u << s % 32);
              atomicOr(&coefficients.any_close, 1);
            } else {
              not_close += w;
            }
          }
        }
        (i == 0 ? two.x : two.y) = w;
      }
      two_at(n, half) = two;
      if (kIsDistance) along[0] -= half == 0 ? not_close : 0.0f, along[1] -= half == 1 ? not_close : 0.0f;
    }
  }
}

// Once, before differentiate() and a barrier.
CCP_DEVICE void forget_close_pairs(Coefficients& coefficients) {
  if (int(threadIdx.x) >= kGradientOwner) return;
  for (auto& bits : coefficients.close) bits[threadIdx.x] = 0;
  coefficients.any_close = 0;
}

// Components d and d + 1 of b̂ - â, zero behind the last.
struct TwoComponents {
  float v[2];
};
CCP_DEVICE_CALL TwoComponents difference(const Side& b, int64_t item_b, float scale_b, const Side& a, int64_t item_a,
                                         float scale_a, int64_t dim, int64_t d) {
  TwoComponents both;
#pragma unroll
  for (int i = 0; i < 2; ++i)
    both.v[i] = d + i < dim
                    ? load_scaled(b, item_b * dim + d + i, scale_b) - load_scaled(a, item_a * dim + d + i, scale_a)
                    : 0.0f;
  return both;
}

// One side of the close pairs of a tile: out += w (ŝ - ô) for the owned items, or, `transposed`, w (ô - ŝ) for the
// streamed ones. The lane's items are first_row + g and that + 8 of its side.
template <bool transposed, int kOutChunks, int kN_>
CCP_DEVICE void add_close_pairs(const Side& owner, const Side& streamed, int64_t dim, const GradientPairs& pairs,
                                const Coefficients& coefficients, int first_row, int64_t first_dim, int chunk_dims,
                                int out_chunks, FragmentD (&out)[kOutChunks][1][kN_]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int mine = first_row + int(threadIdx.x) % kWarp / 4 + half * 8;
#pragma unroll 1
    for (int other = 0; other < kStreamed; ++other) {
      const int o = transposed ? other : mine, s = transposed ? mine : other;
      if (!coefficients.is_close(o, s)) continue;
      const float w = transposed ? -coefficients.at(o, s) : coefficients.at(o, s);
#pragma unroll
      for (int c = 0; c < kOutChunks; ++c) {
        if (c >= out_chunks) break;
#pragma unroll
        for (int n = 0; n < kN_; ++n) {
          const TwoComponents both = difference(streamed, pairs.streamed_info->id[s], pairs.streamed_info->scale[s],
                                                owner, pairs.owner_info->id[o], pairs.owner_info->scale[o], dim,
                                                first_dim + c * chunk_dims + n * 8 + int(threadIdx.x) % 4 * 2);
#pragma unroll
          for (int i = 0; i < 2; ++i) out[c][0][n].v[half * 2 + i] += w * both.v[i];
        }
      }
    }
  }
}

// Once close pairs have been added they count no more. Between barriers.
CCP_DEVICE void drop_close_pairs(Coefficients& coefficients) {
  const int o = int(threadIdx.x);
  if (o >= kGradientOwner) return;
  for (int s = 0; s < kStreamed; ++s)
    if (coefficients.is_close(o, s)) coefficients.at(o, s) = 0.0f;
  forget_close_pairs(coefficients);
}

// The fragments B of components first .. of the vectors of two items 2t and 2t + 1 of those from k on.
template <class T, int kN_>
CCP_DEVICE void load_vectors(const unsigned char* chunk, int k, int first, Arithmetic arithmetic, FragmentB (&b)[kN_]) {
  const int lane = int(threadIdx.x) % kWarp;
  if constexpr (sizeof(T) == sizeof(float)) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const Units units(chunk, lane % 4 * 2 + i);
#pragma unroll
      for (int n = 0; n < kN_; ++n) {
        const unsigned d = unsigned(first + n * 8 + lane / 4);
        b[n].v[i] = reinterpret_cast<const float*>(units.at(d / kInUnit<T>, k))[d % kInUnit<T>];
      }
    }
  } else {
    static_assert(kN_ == 4, "ldmatrix brings four fragments");
    const FourMatrices four =
        load_matrices<true>(Units(chunk, lane % 8).at(unsigned(first) / kInUnit<T> + unsigned(lane) / 8, k));
#pragma unroll
    for (int n = 0; n < kN_; ++n) {
      const bool brain = arithmetic.dtype == Dtype::kBFloat16;
      b[n].v[0] = brain ? lower_half<Dtype::kBFloat16>(four.v[n]) : lower_half<Dtype::kFloat16>(four.v[n]);
      b[n].v[1] = brain ? upper_half<Dtype::kBFloat16>(four.v[n]) : upper_half<Dtype::kFloat16>(four.v[n]);
    }
  }
}

// out += W · (scales times the streamed vectors), or Wᵀ · (scales times the owned ones), for sixteen items from
// first_row on and the components of one chunk of the vectors from first_column on.
//
// `out` gathers over all tiles: so a tile's sums are its own before they are added, and of floats those of each step
// (mma.h). The next step's operands are on their way meanwhile.
//
// In tf32 whatever the vectors are: coefficients span a range that no 16-bit number does. The order of a product's
// terms is free, so that slots t and t + 4 of a fragment take items 2t and 2t + 1, which lie side by side.
template <bool transposed, class T>
CCP_DEVICE void multiply_coefficients(const Coefficients& coefficients, const float* scales,
                                      const unsigned char* vectors, int first_row, int first_column,
                                      Arithmetic arithmetic, FragmentD (&out)[1][kOutN<T>]) {
  const int lane = int(threadIdx.x) % kWarp, g = lane / 4, t = lane % 4;
  FragmentD part[1][kOutN<T>] = {};
#pragma unroll 1
  for (int k = 0; k < kStreamed; k += 8) {
    FragmentA a[1];
    FragmentB b[kOutN<T>];
    const float2 scale = *reinterpret_cast<const float2*>(scales + k + 2 * t);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = first_row + g + half * 8;
      float2 two;
      if (transposed)
        two = {coefficients.at(k + 2 * t, row), coefficients.at(k + 2 * t + 1, row)};
      else
        two = *reinterpret_cast<const float2*>(&coefficients.w[row * kCoefficientStride + k + 2 * t]);
      a[0].v[half] = two.x * scale.x;
      a[0].v[2 + half] = two.y * scale.y;
    }
    load_vectors<T>(vectors, k, first_column, arithmetic, b);
    if constexpr (sizeof(T) == sizeof(float)) {
      add(out, part);
      clear(part);
      multiply(arithmetic.products, part, a, b);
    } else {  // the vectors are exact in tf32
      FragmentA rounded[1];
      round_to_tf32(a[0], rounded[0]);
      mma(part, rounded, b);
    }
  }
  add(out, part);
}

// The sums over each of 64 items of what the lanes that share it hold for rows g and g + 8 of their warp, into out[].
CCP_DEVICE void sum_over_rows(float (&mine)[2], float* out, float* sums, int first_row) {
  const int lane = int(threadIdx.x) % kWarp;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    mine[half] += __shfl_xor_sync(kFullWarp, mine[half], 1);
    mine[half] += __shfl_xor_sync(kFullWarp, mine[half], 2);
    if (lane % 4 == 0)
      sums[int(threadIdx.x) / kWarp % kWarpColumns * kGradientOwner + first_row + lane / 4 + half * 8] = mine[half];
  }
  __syncthreads();
  if (int(threadIdx.x) < kGradientOwner) out[threadIdx.x] = sums[threadIdx.x] + sums[kGradientOwner + threadIdx.x];
  __syncthreads();
}

// From the gradient g with respect to the normalised v̂, the multiple `along` of v̂ still to be added, and g · v̂ to the
// gradient with respect to the original v:  scale · (I - v̂v̂ᵀ)(g + along·v̂), without the projection onto the tangent
// where the normalisation was the identity.
class ToOriginal {
 public:
  CCP_DEVICE ToOriginal(Normalize normalize, float scale, float along, float dot)
      : scale_(scale),
        of_v_(normalize == Normalize::kUnit || (normalize == Normalize::kBall && scale < 1.0f) ? -dot : along) {}
  CCP_DEVICE float operator()(float g, float v) const { return (g + v * scale_ * of_v_) * scale_; }
  CCP_DEVICE float2 operator()(float2 g, float2 v) const { return {(*this)(g.x, v.x), (*this)(g.y, v.y)}; }

 private:
  float scale_, of_v_;
};

// The fragments of `out` are numbers of a chunk each. f(row within the tile, half, components) for both rows that the
// lane has a part of, where components(g) calls g(d, two) for its components d, even, and d + 1, zero behind the last.
template <class T, int kOutChunks, class F>
CCP_DEVICE void for_each_row(const FragmentD (&out)[kOutChunks][1][kOutN<T>], int out_chunks, int first_row,
                             int64_t first_dim, int64_t dim, const F& f) {
  const int lane = int(threadIdx.x) % kWarp, first = int(first_dim) + lane % 4 * 2;
#pragma unroll
  for (int half = 0; half < 2; ++half)
    f(first_row + lane / 4 + half * 8, half, [&](const auto& g) {
#pragma unroll 1
      for (int chunk = 0; chunk < out_chunks; ++chunk) {
        float2 numbers[kOutN<T>] = {};
#pragma unroll
        for (int c = 0; c < kOutChunks; ++c)  // registers have no addresses
          if (c == chunk)
#pragma unroll
            for (int n = 0; n < kOutN<T>; ++n) numbers[n] = {out[c][0][n].v[half * 2], out[c][0][n].v[half * 2 + 1]};
#pragma unroll
        for (int n = 0; n < kOutN<T>; ++n) {
          const int d = first + chunk * kChunk<T> + n * 8;
          if (d + 1 >= dim) numbers[n].y = 0.0f;
          if (d < dim) g(d, numbers[n]);
        }
      }
    });
}

}  // namespace cuda
}  // namespace ccp
