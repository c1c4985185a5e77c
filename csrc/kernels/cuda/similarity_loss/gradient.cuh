// Backward, one side in a block: it owns a tile of items of that side, computes each tile of pairs again, turns it into
// coefficients, and multiplies those with the streamed vectors. The gradients of the owned items stay in registers
// until they are whole. One launch does both sides; both_gradients.cuh has what is faster where it fits.
#pragma once

#include "kernels/cuda/similarity_loss/coefficients.cuh"
#include "kernels/cuda/similarity_loss/slices.h"

namespace ccp {
namespace cuda {

// The gradient of one side.
struct GradientSide {
  Items owner, streamed;
  bool owner_is_row;
  int64_t slices;
  void* gradient;  // like owner.side.data
  // Where one block has not all of it (several slices, or more components than its registers hold):
  float* partial;        // [slices, owner tiles · 64, dim]
  float* partial_along;  // [slices, owner tiles · 64]
};

struct GradientJob {
  GradientInputs inputs;
  GradientSide sides[2];
  int64_t first_blocks;  // of sides[0]; those behind are of sides[1]
  bool resident;
};

// Shared memory behind the tile's own.
struct GradientShared {
  RowInfo row_info;
  Coefficients coefficients;
  float along[kGradientOwner], dots[kGradientOwner], sums[kWarpColumns * kGradientOwner];
};

template <class Loss, class T, int kDims>
__global__ void __launch_bounds__(kThreads, 1)
    similarity_gradient(const __grid_constant__ GradientJob job, const __grid_constant__ Loss loss) {
  constexpr int kOwner = kGradientOwner;
  constexpr int kOutChunks = kDims / kChunk<T>;
  constexpr int kAtOnce = kDims > 128 ? 1 : 4;  // the gradients take most registers
  constexpr bool kIsDistance = Loss::kMetric != Metric::kDot;
  CCP_SHARED(bytes);
  const GradientInputs& inputs = job.inputs;
  const bool is_first = blockIdx.x < job.first_blocks;
  const GradientSide& side = job.sides[is_first ? 0 : 1];
  const int64_t block = is_first ? blockIdx.x : blockIdx.x - job.first_blocks;
  PairTile<T, kOwner> tile(side.owner, side.streamed, inputs.dim, inputs.normalize, inputs.arithmetic, job.resident,
                           bytes);
  GradientShared& shared =
      *reinterpret_cast<GradientShared*>(bytes + PairTile<T, kOwner>::shared_bytes(inputs.dim, job.resident));
  const int64_t owner_tiles = divide_up(positions_of(side.owner.side), kOwner);
  const int64_t slice = block / owner_tiles, first_owner = block % owner_tiles * kOwner;
  const int64_t first_dim = int64_t(blockIdx.y) * kDims;
  if (first_owner >= side.owner.positions()) return;

  const TileRange range = tiles_of_slice(divide_up(side.streamed.positions(), kStreamed), slice, side.slices);
  // Every tile passes twice: all its chunks for the products, then those that this block differentiates.
  const int chunks = tile.chunks(), first_chunk = int(first_dim / kChunk<T>);
  const int out_chunks = int(min_of(chunks - first_chunk, kOutChunks));
  int ahead = range.begin, ahead_pass = 0;  // tile and pass of the next load
  const auto start_next = [&] {
    if (ahead < range.end) {
      const bool product = ahead_pass < chunks;
      tile.start(first_owner, product && (!job.resident || ahead == range.begin), int64_t(ahead) * kStreamed,
                 product ? ahead_pass : first_chunk + ahead_pass - chunks);
      if (++ahead_pass == chunks + out_chunks) ahead_pass = 0, ++ahead;
    }
    copy_async_commit();
  };
  const auto next_load = [&] {
    copy_async_wait<kStages - 2>();
    __syncthreads();  // everyone's part of this load is there, and nobody still reads the one that is overwritten next
    start_next();
  };

  const int out_row = tile.first_owner(), out_column = int(threadIdx.x) / kWarp % kWarpColumns * (kOutN<T> * 8);
  FragmentD out[kOutChunks][1][kOutN<T>] = {};
  float along[2] = {0.0f, 0.0f};

  if (kIsDistance) forget_close_pairs(shared.coefficients);
  for (int load = 0; load < kStages - 1; ++load) start_next();
  for (int t = range.begin; t < range.end; ++t) {
    const bool with_owner = !job.resident || t == range.begin;
    FragmentD dot[1][kN] = {};
    for (int chunk = 0; chunk < chunks; ++chunk) {
      next_load();
      tile.multiply(chunk, with_owner, dot);
      tile.forget_load();
    }
    tile.describe(first_owner, with_owner, int64_t(t) * kStreamed);
    if ((!side.owner_is_row || t == range.begin) && int(threadIdx.x) < kStreamed)
      load_row_info(inputs,
                    side.owner_is_row ? side.owner.at(first_owner + threadIdx.x)
                                      : side.streamed.at(int64_t(t) * kStreamed + threadIdx.x),
                    int(threadIdx.x), shared.row_info);
    __syncthreads();
    differentiate<kAtOnce>(inputs, loss, (side.owner_is_row ? side.streamed : side.owner).side, side.owner_is_row, tile,
                           shared.row_info, dot, shared.coefficients, along);
    if (kIsDistance) {
      __syncthreads();
      if (shared.coefficients.any_close) {
        add_close_pairs<false>(side.owner.side, side.streamed.side, inputs.dim, tile, shared.coefficients, out_row,
                               first_dim + out_column, kChunk<T>, out_chunks, out);
        __syncthreads();
        drop_close_pairs(shared.coefficients);
      }
    }
    for (int chunk = 0; chunk < out_chunks; ++chunk) {
      next_load();  // its barrier also stands between the coefficients' writing and reading
                    // Registers have no addresses: one copy of the product per chunk, and a jump to it.
#pragma unroll
      for (int c = 0; c < kOutChunks; ++c)
        if (c == chunk)
          multiply_coefficients<false, T>(shared.coefficients, tile.streamed_info->scale, tile.streamed_chunk(),
                                          out_row, out_column, inputs.arithmetic, out[c]);
      tile.forget_load();
    }
  }

  // along: four lanes share an owned item, then the warps that lie side by side do.
  sum_over_rows(along, shared.along, shared.sums, out_row);

  const auto for_each = [&](const auto& f) {
    for_each_row<T>(out, out_chunks, out_row, first_dim + out_column, inputs.dim, f);
  };
  if (side.partial) {
    const int64_t padded = owner_tiles * kOwner, first = slice * padded + first_owner;
    for_each([&](int row, int, const auto& components) {
      const Components<Dtype::kFloat32> part(side.partial, first + row, inputs.dim);
      components([&](int d, float2 x) { part.store(d, x); });
    });
    if (blockIdx.y == 0 && int(threadIdx.x) < kOwner)
      side.partial_along[first + threadIdx.x] = shared.along[threadIdx.x];
    return;
  }

  // The gradient is whole: on to the original vectors. The tile's infos still describe the owned items, if it had any.
  const bool empty = range.begin == range.end;
  with_dtype<T>(side.owner.side.dtype, [&](auto known) {
    using Vector = Components<decltype(known)::value>;
    float dots[2] = {0.0f, 0.0f};
    for_each([&](int row, int half, const auto& components) {
      if (empty || tile.owner_info->id[row] < 0) return;
      const Vector original(side.owner.side.data, tile.owner_info->id[row], inputs.dim);
      const float scale = tile.owner_info->scale[row];
      components([&](int d, float2 x) {
        const float2 v = original.load(d);
        dots[half] += x.x * v.x * scale;
        dots[half] += x.y * v.y * scale;
      });
    });
    sum_over_rows(dots, shared.dots, shared.sums, out_row);
    for_each([&](int row, int, const auto& components) {
      const int64_t item = side.owner.at(first_owner + row);
      if (item < 0) return;
      const Vector gradient(side.gradient, item, inputs.dim);
      if (empty) return components([&](int d, float2 x) { gradient.store(d, x); });
      const Vector original(side.owner.side.data, item, inputs.dim);
      const ToOriginal to_original(inputs.normalize, tile.owner_info->scale[row], shared.along[row], shared.dots[row]);
      components([&](int d, float2 x) { gradient.store(d, to_original(x, original.load(d))); });
    });
  });
}

}  // namespace cuda
}  // namespace ccp
