// One tile of the matrix of pairs: kOwner items of the side that a block owns against kStreamed items of the other
// side.
//
// The components pass through shared memory a chunk at a time, copied kStages - 1 chunks ahead, and meet in the tensor
// cores; the dot products stay in registers. While a chunk is there, each item's squares are added up as well, so norms
// cost no pass of their own and normalisation is a factor that enters afterwards.
#pragma once

#include "kernels/cuda/similarity_loss/infos.cuh"

namespace ccp {
namespace cuda {

constexpr int kStages = 3;

// A tile's place in the pipeline of chunks, and the shared memory it passes through. T: float or, for 16 bits,
// uint16_t.
template <class T, int kOwner>
class PairTile : public TilePairs<kOwner> {
 public:
  // With `resident` all chunks of the owned items stay in shared memory once loaded, and are described once.
  CCP_HD static size_t shared_bytes(int64_t dim, bool resident) {
    return chunk_bytes(dim, resident) + sizeof(ItemInfo<kOwner>) + sizeof(ItemInfo<kStreamed>);
  }

  CCP_DEVICE PairTile(const Items& owner, const Items& streamed, int64_t dim, Normalize normalize,
                      Arithmetic arithmetic, bool resident, unsigned char* shared)
      : TilePairs<kOwner>(
            owner, streamed, dim, reinterpret_cast<ItemInfo<kOwner>*>(shared + chunk_bytes(dim, resident)),
            reinterpret_cast<ItemInfo<kStreamed>*>(shared + chunk_bytes(dim, resident) + sizeof(ItemInfo<kOwner>))),
        owner_(owner),
        streamed_(streamed),
        dim_(dim),
        normalize_(normalize),
        arithmetic_(arithmetic),
        resident_(resident),
        streamed_chunks_(shared),
        owner_chunks_(shared + kStages * kStreamed * kRowBytes) {}

  CCP_DEVICE int chunks() const { return int(chunks_of(dim_)); }
  CCP_DEVICE unsigned char* streamed_chunk() const { return streamed_chunks_ + now_ * kStreamed * kRowBytes; }

  // Starts the next load: chunk `chunk` of the streamed items from position `first` on, and of the owned ones.
  CCP_DEVICE void start(int64_t first_owner, bool with_owner, int64_t first, int chunk) {
    start_chunk<T, kStreamed>(
        streamed_, [&](int i) { return streamed_.at(first + i); }, dim_, chunk * kChunk<T>,
        streamed_chunks_ + next_ * kStreamed * kRowBytes);
    if (with_owner)
      start_chunk<T, kOwner>(
          owner_, [&](int i) { return owner_.at(first_owner + i); }, dim_, chunk * kChunk<T>,
          owner_chunk(next_, chunk));
    next_ = after(next_);
  }

  // Adds the part of the products, and of the squares, of the oldest load.
  CCP_DEVICE void multiply(int chunk, bool with_owner, FragmentD (&dot)[kM<kOwner>][kN]) {
    const unsigned char *owner = owner_chunk(now_, chunk), *streamed = streamed_chunk();
    multiply_chunk<T>(owner, this->first_owner(), streamed, this->first_streamed(), arithmetic_, dot);
    streamed_squares_.add(streamed, arithmetic_);
    if (with_owner) owner_squares_.add(owner, arithmetic_);
  }

  // The oldest load is not needed any more.
  CCP_DEVICE void forget_load() { now_ = after(now_); }

  // Fills the infos once all chunks have passed. Nobody may read them before a barrier.
  CCP_DEVICE void describe(int64_t first_owner, bool with_owner, int64_t first) {
    if (with_owner)
      describe_items(
          owner_, [&](int i) { return owner_.at(first_owner + i); }, dim_, normalize_, owner_squares_,
          *this->owner_info);
    describe_items(
        streamed_, [&](int i) { return streamed_.at(first + i); }, dim_, normalize_, streamed_squares_,
        *this->streamed_info);
  }

 private:
  // Vectors without components pass as one chunk of zeros.
  CCP_HD static int64_t chunks_of(int64_t dim) { return dim > kChunk<T> ? divide_up(dim, kChunk<T>) : 1; }
  CCP_HD static size_t chunk_bytes(int64_t dim, bool resident) {
    const int64_t owner = resident ? chunks_of(dim) : kStages;
    return size_t(owner * kOwner + kStages * kStreamed) * kRowBytes;
  }

  CCP_DEVICE unsigned char* owner_chunk(int stage, int chunk) const {
    return owner_chunks_ + (resident_ ? chunk : stage) * kOwner * kRowBytes;
  }
  CCP_DEVICE static int after(int stage) { return stage + 1 < kStages ? stage + 1 : 0; }

  const Items& owner_;
  const Items& streamed_;
  const int64_t dim_;
  const Normalize normalize_;
  const Arithmetic arithmetic_;
  const bool resident_;
  unsigned char *streamed_chunks_, *owner_chunks_;
  int next_ = 0, now_ = 0;  // stages: of the next load, of the oldest
  Squares<T, kOwner> owner_squares_;
  Squares<T, kStreamed> streamed_squares_;
};

}  // namespace cuda
}  // namespace ccp
