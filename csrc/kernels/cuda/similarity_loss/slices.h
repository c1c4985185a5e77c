// How the streamed side is cut where there are too few owned tiles to keep the GPU busy. A function of sizes alone.
#pragma once

#include "kernels/cuda/similarity_loss/pair_tile.cuh"

namespace ccp {
namespace cuda {

constexpr int kBlocksPerMultiprocessor = 2;

inline int64_t slices_for(int64_t owned_tiles, int64_t streamed_tiles, int multiprocessors) {
  const int64_t wanted = int64_t(multiprocessors) * kBlocksPerMultiprocessor / (owned_tiles > 0 ? owned_tiles : 1);
  const int64_t most = wanted < streamed_tiles ? wanted : streamed_tiles;
  return most > 1 ? most : 1;
}

// The streamed tiles of a slice: begin <= tile < end.
struct TileRange {
  int64_t begin, end;
};
CCP_DEVICE TileRange tiles_of_slice(int64_t tiles, int64_t slice, int64_t slices) {
  return {tiles * slice / slices, tiles * (slice + 1) / slices};
}

// Keep the owned items' components in shared memory where every supported GPU has room for them (99 KiB a block).
template <int kOwner>
inline bool owner_fits(int64_t dim, size_t others) {
  return PairTile<kOwner>::shared_bytes(dim, true) + others <= 99 * 1024;
}

inline Items items_of(const Side& side, int64_t dim, const int64_t* chosen = nullptr,
                      const int64_t* chosen_count = nullptr) {
  const size_t bytes = side.dtype == Dtype::kFloat32 ? 16 : 8;
  return {side, chosen, chosen_count, dim % 4 == 0 && reinterpret_cast<uintptr_t>(side.data) % bytes == 0};
}

}  // namespace cuda
}  // namespace ccp
