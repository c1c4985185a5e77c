// Backward, both sides in a block, for a streamed side that fits into one: at most 128 items of at most 128 components,
// the samples of a batch as a rule. Their vectors stay in shared memory, while the block takes one tile of owned items
// after another, the proxies say: each is read once, its pairs are computed once, and W gives both gradients,
//   owned += W · streamed, whole within the tile,   streamed += Wᵀ · owned, in registers from tile to tile.
// What the blocks have of the streamed gradients is added up in their order afterwards (launch_finish_gradient): memory
// for that is 128 · 128 floats a block, of which there is one on a multiprocessor.
//
// Of a loss with a hinge only the items that forward has marked are visited; all others' gradients are set to zero.
#pragma once

#include "kernels/cuda/similarity_loss/coefficients.cuh"
#include "kernels/cuda/similarity_loss/flags.cuh"

namespace ccp {
namespace cuda {

constexpr int kBothTiles = 2;   // of streamed items, at most
constexpr int kBothDims = 128;  // components, at most

struct BothJob {
  GradientInputs inputs;
  Items owner, streamed;
  bool owner_is_row;
  const uint8_t* active;  // of the owned items, with a hinge
  int64_t unit, units;    // with a hinge: this many owned items at a time, kFlags at most, so often
  void* gradient;         // like owner.side.data
  float* partial;         // [blocks, streamed tiles · 64, dim]
  float* partial_along;   // [blocks, streamed tiles · 64]
};

// Shared memory behind the vectors.
struct BothShared {
  ItemInfo<kGradientOwner> owner_info;
  ItemInfo<kStreamed> streamed_info[kBothTiles];
  RowInfo row_info[kBothTiles];  // one for each streamed tile, or the first for the owned one
  Coefficients coefficients;
  float along[kGradientOwner], dots[kGradientOwner], sums[kWarpColumns * kGradientOwner];
  int list[kFlags], counts[kWarps];
};

CCP_HD int both_streamed_tiles(const Side& streamed) { return int(divide_up(positions_of(streamed), kStreamed)); }
template <class T>
CCP_HD int64_t both_chunks(int64_t dim) {
  return dim > kChunk<T> ? divide_up(dim, kChunk<T>) : 1;
}
// Two tiles of owned vectors, in turn, and the streamed ones.
template <class T>
CCP_HD size_t both_vector_bytes(const Side& streamed, int64_t dim) {
  return size_t((2 + both_streamed_tiles(streamed)) * both_chunks<T>(dim)) * kStreamed * kRowBytes;
}
template <class T>
CCP_HD size_t both_shared_bytes(const Side& streamed, int64_t dim) {
  return both_vector_bytes<T>(streamed, dim) + sizeof(BothShared);
}

// The gradient of n items is zero where they have no flag; a warp for each.
CCP_DEVICE void clear_inactive(const uint8_t* flags, int n, void* gradient, const Side& side, int64_t first,
                               int64_t dim) {
  const int64_t row_bytes = dim * dtype_bytes(side.dtype);
  for (int i = int(threadIdx.x) / kWarp; i < n; i += kWarps) {
    if (flags[i]) continue;
    unsigned char* row = static_cast<unsigned char*>(gradient) + (first + i) * row_bytes;
    if (row_bytes % 16 == 0 && reinterpret_cast<uintptr_t>(gradient) % 16 == 0)
      for (int64_t b = threadIdx.x % kWarp * 16; b < row_bytes; b += kWarp * 16)
        *reinterpret_cast<uint4*>(row + b) = {0, 0, 0, 0};
    else
      for (int64_t d = threadIdx.x % kWarp; d < dim; d += kWarp)
        store_component(gradient, side.dtype, (first + i) * dim + d, 0.0f);
  }
}

template <class Loss, class T>
__global__ void __launch_bounds__(kThreads, 1)
    similarity_both_gradients(const __grid_constant__ BothJob job, const __grid_constant__ Loss loss) {
  constexpr int kOutChunks = kBothDims / kChunk<T>;
  constexpr bool kIsDistance = Loss::kMetric != Metric::kDot;
  CCP_SHARED(bytes);
  const GradientInputs& inputs = job.inputs;
  const int chunks = int(both_chunks<T>(inputs.dim)), streamed_tiles = both_streamed_tiles(job.streamed.side);
  BothShared& shared = *reinterpret_cast<BothShared*>(bytes + both_vector_bytes<T>(job.streamed.side, inputs.dim));
  const auto vectors = [&](int tile, int chunk) { return bytes + (tile * chunks + chunk) * kStreamed * kRowBytes; };
  const auto owned = [&](int64_t tile, int chunk) { return vectors(int(tile % 2), chunk); };
  const auto streamed = [&](int tile, int chunk) { return vectors(2 + tile, chunk); };
  const auto start = [&](const Items& items, const auto& item_of, const auto& to) {
    for (int chunk = 0; chunk < chunks; ++chunk)
      start_chunk<T, kStreamed>(items, item_of, inputs.dim, chunk * kChunk<T>, to(chunk));
  };
  const auto describe = [&](const Items& items, const auto& item_of, const auto& from, ItemInfo<kStreamed>& info) {
    Squares<T, kStreamed> squares;
    for (int chunk = 0; chunk < chunks; ++chunk) squares.add(from(chunk), inputs.arithmetic);
    describe_items(items, item_of, inputs.dim, inputs.normalize, squares, info);
  };
  const auto row_info = [&](int64_t row, RowInfo& info) {
    if (int(threadIdx.x) < kStreamed) load_row_info(inputs, row, int(threadIdx.x), info);
  };

  const int first_row = GradientPairs::first_owner();
  const int first_column = int(threadIdx.x) / kWarp % kWarpColumns * (kOutN<T> * 8);
  FragmentD out_streamed[kBothTiles][kOutChunks][1][kOutN<T>] = {};
  // Of streamed item threadIdx.x % 64 of each tile, from a quarter of the owned items.
  float along_streamed[kBothTiles] = {};
  for (int a = 0; a < streamed_tiles; ++a)
    start(
        job.streamed, [&](int i) { return job.streamed.at(a * kStreamed + i); },
        [&](int chunk) { return streamed(a, chunk); });
  if (kIsDistance) forget_close_pairs(shared.coefficients);
  bool streamed_known = false;

  for (int64_t unit = blockIdx.x; unit < job.units; unit += gridDim.x) {
    const int64_t unit_first = unit * job.unit;
    int64_t tiles;
    int listed = 0;
    if (Loss::kHinge) {
      const int n = int(min_of(job.unit, job.owner.side.count - unit_first));
      clear_inactive(job.active + unit_first, n, job.gradient, job.owner.side, unit_first, inputs.dim);
      listed = list_flags(job.active + unit_first, n, shared.list, shared.counts);
      tiles = divide_up(listed, kGradientOwner);
    } else {
      tiles = divide_up(divide_up(positions_of(job.owner.side), kGradientOwner) - unit, gridDim.x);
    }
    const auto item_of = [&](int64_t tile, int i) -> int64_t {
      if (!Loss::kHinge) return job.owner.at((unit + tile * gridDim.x) * kGradientOwner + i);
      const int64_t place = tile * kGradientOwner + i;
      return place < listed ? unit_first + shared.list[place] : -1;
    };
    const auto start_owned = [&](int64_t tile) {
      if (tile < tiles)
        start(job.owner, [&](int i) { return item_of(tile, i); }, [&](int chunk) { return owned(tile, chunk); });
      copy_async_commit();
    };

    start_owned(0);
    for (int64_t t = 0; t < tiles; ++t) {
      copy_async_wait<0>();
      __syncthreads();  // the tile is there, and nobody still reads the one before it
      start_owned(t + 1);
      describe(
          job.owner, [&](int i) { return item_of(t, i); }, [&](int chunk) { return owned(t, chunk); },
          shared.owner_info);
      if (job.owner_is_row) row_info(item_of(t, int(threadIdx.x) % kStreamed), shared.row_info[0]);
      if (!streamed_known)
        for (int a = 0; a < streamed_tiles; ++a) {
          const auto streamed_at = [&](int i) { return job.streamed.at(a * kStreamed + i); };
          describe(job.streamed, streamed_at, [&](int chunk) { return streamed(a, chunk); }, shared.streamed_info[a]);
          if (!job.owner_is_row) row_info(streamed_at(int(threadIdx.x) % kStreamed), shared.row_info[a]);
        }
      streamed_known = true;
      __syncthreads();

      FragmentD out[kOutChunks][1][kOutN<T>] = {};
      float along[2] = {0.0f, 0.0f};
      for (int a = 0; a < streamed_tiles; ++a) {
        const GradientPairs pairs(job.owner, job.streamed, inputs.dim, &shared.owner_info, &shared.streamed_info[a]);
        FragmentD dot[1][kN] = {};
        for (int chunk = 0; chunk < chunks; ++chunk)
          multiply_chunk<T>(owned(t, chunk), pairs.first_owner(), streamed(a, chunk), pairs.first_streamed(),
                            inputs.arithmetic, dot);
        if (a > 0) __syncthreads();  // everyone is done with the coefficients
        differentiate<2>(inputs, loss, (job.owner_is_row ? job.streamed : job.owner).side, job.owner_is_row, pairs,
                         shared.row_info[job.owner_is_row ? 0 : a], dot, shared.coefficients, along);
        __syncthreads();
        if (kIsDistance) {
          if (shared.coefficients.any_close) {
            add_close_pairs<false>(job.owner.side, job.streamed.side, inputs.dim, pairs, shared.coefficients, first_row,
                                   first_column, kChunk<T>, chunks, out);
#pragma unroll
            for (int b = 0; b < kBothTiles; ++b)
              if (b == a)
                add_close_pairs<true>(job.owner.side, job.streamed.side, inputs.dim, pairs, shared.coefficients,
                                      first_row, first_column, kChunk<T>, chunks, out_streamed[b]);
            __syncthreads();
            drop_close_pairs(shared.coefficients);
            __syncthreads();
          }
          const int s = int(threadIdx.x) % kStreamed, quarter = int(threadIdx.x) / kStreamed;
          float sum = 0;
#pragma unroll 4
          for (int o = 0; o < kGradientOwner / 4; ++o)
            sum += shared.coefficients.at(quarter * (kGradientOwner / 4) + o, s);
#pragma unroll
          for (int b = 0; b < kBothTiles; ++b)
            if (b == a) along_streamed[b] -= sum;
        }
        // Registers have no addresses: one copy of the product for each chunk and tile.
#pragma unroll
        for (int c = 0; c < kOutChunks; ++c) {
          if (c >= chunks) break;
          multiply_coefficients<false, T>(shared.coefficients, pairs.streamed_info->scale, streamed(a, c), first_row,
                                          first_column, inputs.arithmetic, out[c]);
#pragma unroll
          for (int b = 0; b < kBothTiles; ++b)
            if (b == a)
              multiply_coefficients<true, T>(shared.coefficients, pairs.owner_info->scale, owned(t, c), first_row,
                                             first_column, inputs.arithmetic, out_streamed[b][c]);
        }
      }

      // The owned gradients are whole: on to the original vectors.
      sum_over_rows(along, shared.along, shared.sums, first_row);
      with_dtype<T>(job.owner.side.dtype, [&](auto known) {
        constexpr Dtype dtype = decltype(known)::value;
        const auto original = [&](int row, int d) {
          return two_components_of<T, dtype>(owned(t, d / kChunk<T>), row, unsigned(d % kChunk<T>));
        };
        float dots[2] = {0.0f, 0.0f};
        for_each_row<T>(out, chunks, first_row, first_column, inputs.dim,
                        [&](int row, int half, const auto& components) {
                          const float scale = shared.owner_info.scale[row];
                          components([&](int d, float2 x) {
                            const float2 v = original(row, d);
                            dots[half] += x.x * v.x * scale;
                            dots[half] += x.y * v.y * scale;
                          });
                        });
        sum_over_rows(dots, shared.dots, shared.sums, first_row);
        for_each_row<T>(out, chunks, first_row, first_column, inputs.dim, [&](int row, int, const auto& components) {
          const int64_t item = shared.owner_info.id[row];
          if (item < 0) return;
          const ToOriginal to_original(inputs.normalize, shared.owner_info.scale[row], shared.along[row],
                                       shared.dots[row]);
          const Components<dtype> gradient(job.gradient, item, inputs.dim);
          components([&](int d, float2 x) { gradient.store(d, to_original(x, original(row, d))); });
        });
      });
    }
  }

  const int64_t first = int64_t(blockIdx.x) * streamed_tiles * kStreamed;
#pragma unroll
  for (int a = 0; a < kBothTiles; ++a) {
    if (a >= streamed_tiles) break;
    for_each_row<T>(out_streamed[a], chunks, first_row, first_column, inputs.dim,
                    [&](int row, int, const auto& components) {
                      const Components<Dtype::kFloat32> part(job.partial, first + a * kStreamed + row, inputs.dim);
                      components([&](int d, float2 x) { part.store(d, x); });
                    });
    __syncthreads();
    shared.coefficients.w[threadIdx.x] = along_streamed[a];
    __syncthreads();
    if (int(threadIdx.x) < kStreamed) {
      float sum = 0;
      for (int quarter = 0; quarter < kThreads / kStreamed; ++quarter)
        sum += shared.coefficients.w[quarter * kStreamed + threadIdx.x];
      job.partial_along[first + a * kStreamed + threadIdx.x] = sum;
    }
  }
}

}  // namespace cuda
}  // namespace ccp
