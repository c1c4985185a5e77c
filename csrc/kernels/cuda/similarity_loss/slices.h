// How the streamed side is cut where there are too few owned tiles to keep the GPU busy. A function of sizes alone.
#pragma once

#include "kernels/cuda/similarity_loss/pair_tile.cuh"

namespace ccp {
namespace cuda {

constexpr int kBlocksPerMultiprocessor = 2;

inline int64_t slices_for(int64_t owned_tiles, int64_t streamed_tiles, int multiprocessors,
                          int blocks_each = kBlocksPerMultiprocessor) {
  const int64_t wanted = int64_t(multiprocessors) * blocks_each / (owned_tiles > 0 ? owned_tiles : 1);
  const int64_t most = wanted < streamed_tiles ? wanted : streamed_tiles;
  return most > 1 ? most : 1;
}

// The streamed tiles of a slice: begin <= tile < end. There are fewer than 2^31 for any side that fits into memory, and
// registers are scarce.
struct TileRange {
  int begin, end;
};
CCP_DEVICE TileRange tiles_of_slice(int64_t tiles, int64_t slice, int64_t slices) {
  return {int(tiles * slice / slices), int(tiles * (slice + 1) / slices)};
}

constexpr size_t kLeastSharedBytes = 99 * 1024;  // that a block may have on every supported GPU

// Keep the owned items' components in shared memory where there is room for them.
template <class T, int kOwner>
inline bool owner_fits(int64_t dim, size_t others, size_t room = kLeastSharedBytes) {
  return PairTile<T, kOwner>::shared_bytes(dim, true) + others <= room;
}

// The type of a tile's numbers in shared memory: calls f with a float, or where both sides have the same 16-bit type
// with a uint16_t.
template <class F>
inline auto with_tile_type(const Side& a, const Side& b, const F& f) {
  return a.dtype == b.dtype && a.dtype != Dtype::kFloat32 ? f(uint16_t()) : f(float());
}

template <class T>
inline Items items_of(const Side& side, int64_t dim, const int64_t* chosen = nullptr,
                      const int64_t* chosen_count = nullptr) {
  const int64_t components = kInUnit<T>;
  const auto bytes = uintptr_t(components * dtype_bytes(side.dtype));
  return {side, chosen, chosen_count, dim % components == 0 && reinterpret_cast<uintptr_t>(side.data) % bytes == 0};
}

}  // namespace cuda
}  // namespace ccp
