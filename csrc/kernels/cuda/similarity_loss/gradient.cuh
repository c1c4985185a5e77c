// Backward, for one side at a time: a block owns a tile of items of that side, computes each tile of pairs again, turns
// it into the coefficients of the streamed vectors, and multiplies those with them. The gradients of the owned items
// stay in registers until they are whole.
//
// For x a dot product, d x / d ô = ŝ; for a distance, (ô - ŝ) / d; for a squared distance, 2 (ô - ŝ). So the gradient
// with respect to the normalised vector is  Σ_s w_s ŝ + along · ô, with along = 0 or -Σ_s w_s; close pairs, in which
// these two would cancel, add w_s (ŝ - ô) instead.
#pragma once

#include "kernels/cuda/similarity_loss/groups.cuh"
#include "kernels/cuda/similarity_loss/row.cuh"
#include "kernels/cuda/similarity_loss/slices.h"

namespace ccp {
namespace cuda {

constexpr int kGradientOwner = 64;
constexpr int kCoefficientStride = kStreamed + 4;

struct GradientJob {
  Items owner, streamed;
  bool owner_is_row;
  int64_t dim;
  Normalize normalize;
  bool exclude_diagonal, resident;
  int64_t slices;
  PositivesList positives;
  int64_t rows;
  Reduction reduction;
  const float* grad_loss;
  const float* row_state;
  const double* normalizer;
  void* gradient;  // like owner.side.data
  // Where one block has not all of it (several slices, or more components than its registers hold):
  float* partial;        // [slices, owner tiles · 64, dim]
  float* partial_along;  // [slices, owner tiles · 64]
};

// What grad() needs of each row of a tile: the saved numbers, then the weights of the positive and the negative part.
constexpr int kRowInfo = kSaved + 2;
struct RowInfo {
  float v[kRowInfo][kStreamed];  // an owned tile has as many items
};
static_assert(kGradientOwner == kStreamed, "a row info serves either side");

CCP_DEVICE void load_row_info(const GradientJob& job, int64_t row, int i, RowInfo& info) {
  const bool real = row >= 0;
#pragma unroll
  for (int k = 0; k < kSaved; ++k) info.v[k][i] = real ? job.row_state[k * job.rows + row] : 0.0f;
  const double grad = real ? job.grad_loss[job.reduction == Reduction::kNone ? row : 0] : 0.0f;
  info.v[kSaved][i] = float(grad / job.normalizer[0]);
  info.v[kSaved + 1][i] = float(grad / job.normalizer[1]);
}

// With a loop over the row's positives inside: one copy of it for all of a lane's pairs.
template <class Loss>
CCP_DEVICE_CALL float gradient_with_positives(const Loss& loss, const PositivesList& list, float x, bool same,
                                              float weight, int64_t row, int64_t column) {
  const RowPositives positives(list, row);
  return loss.grad(x, same, weight, positives, same ? positives.ordinal(column) : 0);
}

// d loss / d x of a pair, given the row's own numbers.
template <class Loss>
CCP_DEVICE float pair_gradient(const GradientJob& job, const Loss& loss, float x, bool same, const RowInfo& info, int r,
                               int64_t row, int64_t column) {
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

// The coefficient of the streamed vector, from d loss / d x.
template <Metric metric>
CCP_DEVICE float coefficient(float g, float x) {
  if (metric == Metric::kDot) return g;
  if (metric == Metric::kSquaredDistance) return -2 * g;
  return x > 0 ? -g / x : x == 0 ? 0.0f : x;  // no direction at distance 0; NaN stays
}

// Shared memory behind the tile's own.
struct GradientShared {
  RowInfo row_info;
  float coefficients[kGradientOwner * kCoefficientStride];
  float along[kGradientOwner], dots[kGradientOwner], sums[kWarpColumns * kGradientOwner];
  unsigned close[kStreamed / 32][kGradientOwner];  // a bit for each streamed item that is close to this owned one
  int any_close;
};
static_assert(kStreamed % 32 == 0, "whole words of bits");

// Turns the coefficients, similarities yet, into those of the streamed vectors, a thread for each row and group.
template <class Loss>
CCP_DEVICE void differentiate_groups(const GradientJob& job, const Loss& loss, const PairTile<kGradientOwner>& tile,
                                     GradientShared& shared) {
  const GroupSpan span((job.owner_is_row ? job.streamed : job.owner).side);
  const int step = job.owner_is_row ? 1 : kCoefficientStride;
  for (int i = int(threadIdx.x); i < kStreamed * kWarpColumns * span.groups; i += kThreads) {
    const int r = i % kStreamed, first = span.first(i / kStreamed);
    const int o = job.owner_is_row ? r : first, s = job.owner_is_row ? first : r;
    const int64_t owner = tile.owner_info->id[o], streamed = tile.streamed_info->id[s];
    float* cell = &shared.coefficients[o * kCoefficientStride + s];
    const auto group = loss.template group<float>(GroupMembers{cell, step, span.size});
    float g = 0.0f;
    if (owner >= 0 && streamed >= 0 && !(job.exclude_diagonal && owner == streamed))
      g = pair_gradient(job, loss, group.value, tile.owner_info->label[o] == tile.streamed_info->label[s],
                        shared.row_info, r, job.owner_is_row ? owner : streamed, job.owner_is_row ? streamed : owner);
    for (int k = 0; k < span.size; ++k) {
      float& member = cell[k * step];
      member = g * loss.member_grad(group, member, k) * tile.streamed_info->scale[job.owner_is_row ? s + k : s];
    }
  }
}

// One component of the gradient with respect to the original v, given that of g, with respect to the normalised v̂, the
// multiple `along` of v̂ still to be added, and g · v̂:  scale · (I - v̂v̂ᵀ)(g + along·v̂), without the projection onto the
// tangent where the normalisation was the identity.
CCP_DEVICE float gradient_of_original(Normalize normalize, float g, float v, float scale, float along, float dot) {
  const bool projected = normalize == Normalize::kUnit || (normalize == Normalize::kBall && scale < 1.0f);
  return (g + v * scale * (projected ? -dot : along)) * scale;
}

// The sums over each owned item of what the lanes that share it hold for rows g and g + 8 of their warp, into out[].
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

// out += the tile's coefficients · one chunk of the streamed vectors; a warp has 16 owned items and half the
// components.
constexpr int kOutN = kChunk / kWarpColumns / 8;

template <Products products>
CCP_DEVICE void multiply_coefficients(const float* coefficients, const float* vectors, int first_row, int first_column,
                                      FragmentD (&out)[1][kOutN]) {
  const int lane = int(threadIdx.x) % kWarp, g = lane / 4, t = lane % 4;
#pragma unroll 1
  for (int k = 0; k < kStreamed; k += 8) {
    FragmentA a[1];
    FragmentB b[kOutN];
#pragma unroll
    for (int i = 0; i < 4; ++i)
      a[0].v[i] = coefficients[(first_row + g + i % 2 * 8) * kCoefficientStride + k + t + i / 2 * 4];
#pragma unroll
    for (int n = 0; n < kOutN; ++n)
#pragma unroll
      for (int i = 0; i < 2; ++i) b[n].v[i] = vectors[(k + t + i * 4) * kStride + first_column + n * 8 + g];
    multiply<products>(out, a, b);
  }
}

// Components d and d + 1 of ŝ - ô, zero behind the last.
struct TwoComponents {
  float v[2];
};
CCP_DEVICE_CALL TwoComponents difference(const Side& streamed, int64_t s, float s_scale, const Side& owner, int64_t o,
                                         float o_scale, int64_t dim, int64_t d) {
  TwoComponents both;
#pragma unroll
  for (int i = 0; i < 2; ++i)
    both.v[i] = d + i < dim ? load_component(streamed, s * dim + d + i) * s_scale -
                                  load_component(owner, o * dim + d + i) * o_scale
                            : 0.0f;
  return both;
}

// out += w (ŝ - ô) for the close pairs of a tile, whose coefficients become zero. The whole block together.
template <int kOutChunks>
CCP_DEVICE void add_close_pairs(const GradientJob& job, const PairTile<kGradientOwner>& tile, GradientShared& shared,
                                int first_row, int64_t first_dim, int out_chunks,
                                FragmentD (&out)[kOutChunks][1][kOutN]) {
  const auto is_close = [&](int o, int s) { return shared.close[s / 32][o] >> s % 32 & 1; };
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int o = first_row + int(threadIdx.x) % kWarp / 4 + half * 8;
#pragma unroll 1
    for (int s = 0; s < kStreamed; ++s) {
      if (!is_close(o, s)) continue;
      const float w = shared.coefficients[o * kCoefficientStride + s];
#pragma unroll
      for (int c = 0; c < kOutChunks; ++c) {
        if (c >= out_chunks) break;
#pragma unroll
        for (int n = 0; n < kOutN; ++n) {
          const TwoComponents both =
              difference(job.streamed.side, tile.streamed_info->id[s], tile.streamed_info->scale[s], job.owner.side,
                         tile.owner_info->id[o], tile.owner_info->scale[o], job.dim,
                         first_dim + c * kChunk + n * 8 + int(threadIdx.x) % 4 * 2);
#pragma unroll
          for (int i = 0; i < 2; ++i) out[c][0][n].v[half * 2 + i] += w * both.v[i];
        }
      }
    }
  }
  __syncthreads();
  const int o = int(threadIdx.x);
  if (o < kGradientOwner)
    for (int s = 0; s < kStreamed; ++s)
      if (is_close(o, s)) shared.coefficients[o * kCoefficientStride + s] = 0.0f;
}

template <class Loss, Products products, int kDims>
__global__ void __launch_bounds__(kThreads)
    similarity_gradient(const __grid_constant__ GradientJob job, const __grid_constant__ Loss loss) {
  constexpr int kOwner = kGradientOwner;
  constexpr int kOutChunks = kDims / kChunk;
  constexpr bool kIsDistance = Loss::kMetric != Metric::kDot;
  CCP_SHARED(bytes);
  PairTile<kOwner> tile(job.owner, job.streamed, job.dim, job.normalize, job.resident, bytes);
  GradientShared& shared =
      *reinterpret_cast<GradientShared*>(bytes + PairTile<kOwner>::shared_bytes(job.dim, job.resident));
  const int64_t owner_tiles = divide_up(positions_of(job.owner.side), kOwner);
  const int64_t slice = blockIdx.x / owner_tiles, first_owner = blockIdx.x % owner_tiles * kOwner;
  const int64_t first_dim = int64_t(blockIdx.y) * kDims;
  if (first_owner >= job.owner.positions()) return;

  const TileRange range = tiles_of_slice(divide_up(job.streamed.positions(), kStreamed), slice, job.slices);
  // Every tile passes twice: all its chunks for the products, then those that this block differentiates.
  const int64_t chunks = tile.chunks(), first_chunk = first_dim / kChunk;
  const int out_chunks = int(chunks - first_chunk < kOutChunks ? chunks - first_chunk : kOutChunks);
  const int64_t passes = chunks + out_chunks, loads = (range.end - range.begin) * passes;
  const auto start = [&](int64_t load) {
    if (load < loads) {
      const int64_t pass = load % passes;
      const bool with_owner = pass < chunks && (!job.resident || load < chunks);
      tile.start(load, first_owner, with_owner, (range.begin + load / passes) * kStreamed,
                 pass < chunks ? pass : first_chunk + pass - chunks);
    }
    copy_async_commit();
  };
  const auto next_load = [&](int64_t load) {
    copy_async_wait<kStages - 2>();
    __syncthreads();  // everyone's part of this load is there, and nobody still reads the one that is overwritten next
    start(load + kStages - 1);
  };

  const int lane = int(threadIdx.x) % kWarp, g = lane / 4, t4 = lane % 4;
  const int out_row = int(threadIdx.x) / kWarp / kWarpColumns * 16;
  const int out_column = int(threadIdx.x) / kWarp % kWarpColumns * (kOutN * 8);
  FragmentD out[kOutChunks][1][kOutN] = {};
  float along[2] = {0.0f, 0.0f};

  for (int64_t load = 0; load < kStages - 1; ++load) start(load);
  int64_t load = 0;
  for (int64_t t = range.begin; t < range.end; ++t) {
    FragmentD dot[kM<kOwner>][kN] = {};
    for (int64_t chunk = 0; chunk < chunks; ++chunk, ++load) {
      next_load(load);
      tile.template multiply_chunk<products>(load, chunk, dot);
    }
    tile.describe(first_owner, t * kStreamed);
    if (job.owner_is_row ? t == range.begin : true)
      if (int(threadIdx.x) < kStreamed)
        load_row_info(
            job,
            job.owner_is_row ? job.owner.at(first_owner + threadIdx.x) : job.streamed.at(t * kStreamed + threadIdx.x),
            int(threadIdx.x), shared.row_info);
    if (kIsDistance && int(threadIdx.x) < kOwner) {
      for (auto& bits : shared.close) bits[threadIdx.x] = 0;
      shared.any_close = 0;
    }
    __syncthreads();
#pragma unroll
    for (int n = 0; n < kN; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int o = tile.owner_index(0, i), s = tile.streamed_index(n, i);
        const float x = tile.template value<Loss::kMetric>(dot[0][n].v[i], o, s);
        if constexpr (Loss::kGrouped) {
          shared.coefficients[o * kCoefficientStride + s] = x;
          continue;
        }
        const int64_t owner = tile.owner_info->id[o], streamed = tile.streamed_info->id[s];
        float w = 0.0f;
        if (owner >= 0 && streamed >= 0 && !(job.exclude_diagonal && owner == streamed)) {
          const bool same = tile.owner_info->label[o] == tile.streamed_info->label[s];
          w = coefficient<Loss::kMetric>(
              pair_gradient(job, loss, x, same, shared.row_info, job.owner_is_row ? o : s,
                            job.owner_is_row ? owner : streamed, job.owner_is_row ? streamed : owner),
              x);
          if (kIsDistance && w != 0.0f && tile.template is_close<Loss::kMetric>(x, o, s)) {
            atomicOr(&shared.close[s / 32][o], 1u << s % 32);
            atomicOr(&shared.any_close, 1);
          } else {
            if (kIsDistance) along[i / 2] -= w;
            w *= tile.streamed_info->scale[s];
          }
        }
        shared.coefficients[o * kCoefficientStride + s] = w;
      }
    if (kIsDistance) {
      __syncthreads();
      if (shared.any_close) add_close_pairs(job, tile, shared, out_row, first_dim + out_column, out_chunks, out);
    }
    if constexpr (Loss::kGrouped) {
      __syncthreads();
      differentiate_groups(job, loss, tile, shared);
    }
    for (int chunk = 0; chunk < out_chunks; ++chunk, ++load) {
      next_load(load);  // its barrier also stands between the coefficients' writing and reading
      const float* vectors = tile.streamed_chunk(load);
      // Registers have no addresses: one copy of the product per chunk, and a jump to it.
#pragma unroll
      for (int c = 0; c < kOutChunks; ++c)
        if (c == chunk) multiply_coefficients<products>(shared.coefficients, vectors, out_row, out_column, out[c]);
    }
  }

  // along: four lanes share an owned item, then the warps that lie side by side do.
  sum_over_rows(along, shared.along, shared.sums, out_row);

  // f(fragment of a chunk, row within the tile, component, index in the fragment) for each number this lane holds.
  const auto for_each = [&](const auto& f) {
    for (int chunk = 0; chunk < out_chunks; ++chunk) {
      FragmentD numbers[kOutN] = {};
#pragma unroll
      for (int c = 0; c < kOutChunks; ++c)
        if (c == chunk)
#pragma unroll
          for (int n = 0; n < kOutN; ++n) numbers[n] = out[c][0][n];
#pragma unroll
      for (int n = 0; n < kOutN; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int64_t d = first_dim + chunk * kChunk + out_column + n * 8 + 2 * t4 + i % 2;
          if (d < job.dim) f(numbers[n].v[i], out_row + g + i / 2 * 8, d, i / 2);
        }
    }
  };
  if (job.partial) {
    const int64_t padded = owner_tiles * kOwner, first = slice * padded + first_owner;
    for_each([&](float x, int row, int64_t d, int) { job.partial[(first + row) * job.dim + d] = x; });
    if (blockIdx.y == 0 && int(threadIdx.x) < kOwner)
      job.partial_along[first + threadIdx.x] = shared.along[threadIdx.x];
    return;
  }

  // The gradient is whole: on to the original vectors. The tile's infos still describe the owned items.
  const bool empty = range.begin == range.end;
  const auto original = [&](int row, int64_t d) {
    return load_component(job.owner.side, tile.owner_info->id[row] * job.dim + d);
  };
  float dots[2] = {0.0f, 0.0f};
  for_each([&](float x, int row, int64_t d, int half) {
    if (!empty && tile.owner_info->id[row] >= 0) dots[half] += x * original(row, d) * tile.owner_info->scale[row];
  });
  sum_over_rows(dots, shared.dots, shared.sums, out_row);
  for_each([&](float x, int row, int64_t d, int) {
    const int64_t item = job.owner.at(first_owner + row);
    if (item < 0) return;
    if (!empty)
      x = gradient_of_original(job.normalize, x, original(row, d), tile.owner_info->scale[row], shared.along[row],
                               shared.dots[row]);
    store_component(job.gradient, job.owner.side.dtype, item * job.dim + d, x);
  });
}

}  // namespace cuda
}  // namespace ccp
