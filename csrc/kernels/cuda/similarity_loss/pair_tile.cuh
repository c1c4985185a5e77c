// One tile of the matrix of pairs: kOwner items of the side that a block owns against kStreamed items of the other
// side.
//
// The components pass through shared memory kChunk at a time, copied kStages - 1 chunks ahead, and meet in the tensor
// cores; the dot products stay in registers. While a chunk is there, each item's squares are added up as well, so norms
// cost no pass of their own and normalisation is a factor that enters afterwards.
#pragma once

#include "common/async_copy.h"
#include "common/mma.h"
#include "kernels/cuda/similarity_loss.h"

namespace ccp {
namespace cuda {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kStreamed = 64;
constexpr int kChunk = 32;
constexpr int kStride = kChunk + 4;  // floats from item to item: the lanes of a fragment load meet in no bank
constexpr int kStages = 3;

// Warps are laid out 4 × 2 over a tile: owner × streamed. A warp's part is kM × kN fragments.
constexpr int kWarpColumns = 2;
constexpr int kN = kStreamed / kWarpColumns / 8;
constexpr int kSpan = kStreamed / kWarpColumns;  // streamed items of a warp
template <int kOwner>
constexpr int kM = kOwner / (kWarps / kWarpColumns) / 16;

CCP_HD int64_t divide_up(int64_t n, int64_t by) { return (n + by - 1) / by; }

// Tiles are cut from a side's positions. An item has one each, but where groups must stay whole: then every kSpan
// positions begin with as many whole groups as fit, and the rest are empty.
CCP_HD int64_t positions_of(const Side& side) {
  return side.per_span ? divide_up(side.count, side.per_span) * kSpan : side.count;
}

// The items of a side that take part: all of them, or those listed.
struct Items {
  Side side;
  const int64_t* chosen;        // nullptr: all
  const int64_t* chosen_count;  // [1], on the device
  bool vectorised;              // four components at a time are aligned

  CCP_DEVICE int64_t positions() const { return chosen ? *chosen_count : positions_of(side); }
  // The item at a position, -1 where there is none.
  CCP_DEVICE int64_t at(int64_t position) const {
    if (position >= positions()) return -1;
    if (side.per_span) {
      const int64_t within = position % kSpan, item = position / kSpan * side.per_span + within;
      return within < side.per_span && item < side.count ? item : -1;
    }
    return chosen ? chosen[position] : position;
  }
  CCP_DEVICE int64_t label(int64_t item) const { return side.labels ? side.labels[item] : item / side.group; }
};

CCP_DEVICE float load_component(const Side& side, int64_t index) {
  if (side.dtype == Dtype::kFloat32) return static_cast<const float*>(side.data)[index];
  const uint16_t bits = static_cast<const uint16_t*>(side.data)[index];
  return side.dtype == Dtype::kBFloat16 ? generic::bfloat16_to_float(bits) : generic::half_to_float(bits);
}

CCP_DEVICE void store_component(void* data, Dtype dtype, int64_t index, float value) {
  if (dtype == Dtype::kFloat32)
    static_cast<float*>(data)[index] = value;
  else
    static_cast<uint16_t*>(data)[index] =
        dtype == Dtype::kBFloat16 ? generic::float_to_bfloat16(value) : generic::float_to_half(value);
}

// Starts the copy of components d .. d + 3 of an item, zeros where there are none. What must be converted is copied at
// once.
CCP_DEVICE void start_copy(const Items& items, int64_t item, int64_t dim, int64_t d, float* to) {
  const int64_t begin = item * dim + d;
  const int left = item < 0 || d >= dim ? 0 : dim - d < 4 ? int(dim - d) : 4;
  if (items.side.dtype == Dtype::kFloat32 && items.vectorised) {
    const float* from = static_cast<const float*>(items.side.data);
    copy_async_16(to, left ? from + begin : from, 4 * left);
    return;
  }
  float4 four = {0.0f, 0.0f, 0.0f, 0.0f};
  if (items.vectorised && left == 4) {
    const uint2 bits = *reinterpret_cast<const uint2*>(static_cast<const uint16_t*>(items.side.data) + begin);
    const uint16_t half[4] = {uint16_t(bits.x), uint16_t(bits.x >> 16), uint16_t(bits.y), uint16_t(bits.y >> 16)};
    float v[4];
#pragma unroll
    for (int i = 0; i < 4; ++i)
      v[i] =
          items.side.dtype == Dtype::kBFloat16 ? generic::bfloat16_to_float(half[i]) : generic::half_to_float(half[i]);
    four = {v[0], v[1], v[2], v[3]};
  } else {
    if (left > 0) four.x = load_component(items.side, begin);
    if (left > 1) four.y = load_component(items.side, begin + 1);
    if (left > 2) four.z = load_component(items.side, begin + 2);
    if (left > 3) four.w = load_component(items.side, begin + 3);
  }
  *reinterpret_cast<float4*>(to) = four;
}

// Starts the copy of one chunk of kItems items.
template <int kItems>
CCP_DEVICE void start_chunk(const Items& items, int64_t first, int64_t dim, int64_t d, float* to) {
#pragma unroll
  for (int q = int(threadIdx.x); q < kItems * kChunk / 4; q += kThreads) {
    const int i = q / (kChunk / 4), component = q % (kChunk / 4) * 4;
    start_copy(items, items.at(first + i), dim, d + component, to + i * kStride + component);
  }
}

// What is known of each item of a tile once its components have passed.
template <int kItems>
struct ItemInfo {
  int64_t id[kItems];  // -1: none
  int64_t label[kItems];
  float scale[kItems];         // normalised = scale · original
  float squared_norm[kItems];  // of the normalised vector
  bool extreme[kItems];  // its products may have left float's range: pairs are computed from the vectors themselves
};

// The scale of an item with these squares, in float's range or not.
CCP_DEVICE float normalizing_scale(Normalize normalize, double squares) {
  if (normalize == Normalize::kNone) return 1.0f;
  const double length = ::sqrt(squares);
  if (normalize == Normalize::kBall) return length > 1 ? float(1 / length) : 1.0f;
  return length > 1e-12 ? float(1 / length) : float(length * 0);  // a zero vector stays zero, NaN stays NaN
}

CCP_DEVICE bool in_range(float squares) { return squares > 1e-30f && squares < 1e30f; }

CCP_DEVICE_CALL double exact_squares(const Side& side, int64_t item, int64_t dim) {
  double sum = 0;
  for (int64_t d = 0; d < dim; ++d) {
    const double v = load_component(side, item * dim + d);
    sum += v * v;
  }
  return sum;
}

template <int kItems>
CCP_DEVICE void describe_item(const Items& items, int64_t item, int64_t dim, Normalize normalize, float squares, int i,
                              ItemInfo<kItems>& info) {
  info.id[i] = item;
  info.label[i] = item < 0 ? -1 : items.label(item);
  const bool extreme = item >= 0 && squares != 0 && !in_range(squares);
  const double exact = extreme || squares == 0 ? (item < 0 ? 0.0 : exact_squares(items.side, item, dim)) : squares;
  const float scale = normalizing_scale(normalize, exact);
  info.scale[i] = scale;
  info.squared_norm[i] = float(exact * double(scale) * double(scale));
  info.extreme[i] = item >= 0 && exact != 0 && !in_range(float(exact)) && normalize != Normalize::kNone;
}

// The dot product or squared distance of a pair, from the normalised vectors themselves; a warp together.
CCP_DEVICE_CALL float exact_pair(bool dot, const Side& a, int64_t item_a, float scale_a, const Side& b, int64_t item_b,
                                 float scale_b, int64_t dim) {
  float sum = 0;
  for (int64_t d = int(threadIdx.x) % kWarp; d < dim; d += kWarp) {
    const float x = load_component(a, item_a * dim + d) * scale_a;
    const float y = load_component(b, item_b * dim + d) * scale_b;
    sum += dot ? x * y : (x - y) * (x - y);
  }
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(kFullWarp, sum, lanes);
  return sum;
}

// A tile's place in the pipeline of chunks, and the shared memory it passes through.
template <int kOwner>
class PairTile {
 public:
  // With `resident` all chunks of the owned items stay in shared memory once loaded.
  CCP_HD static size_t shared_bytes(int64_t dim, bool resident) {
    const int64_t owner = resident ? chunks_of(dim) : kStages;
    return sizeof(ItemInfo<kOwner>) + sizeof(ItemInfo<kStreamed>) +
           sizeof(float) * size_t(owner * kOwner + kStages * kStreamed) * kStride;
  }

  CCP_DEVICE PairTile(const Items& owner, const Items& streamed, int64_t dim, Normalize normalize, bool resident,
                      unsigned char* shared)
      : owner_(owner), streamed_(streamed), dim_(dim), normalize_(normalize), resident_(resident) {
    owner_info = reinterpret_cast<ItemInfo<kOwner>*>(shared);
    streamed_info = reinterpret_cast<ItemInfo<kStreamed>*>(shared + sizeof(ItemInfo<kOwner>));
    streamed_chunks_ = reinterpret_cast<float*>(shared + sizeof(ItemInfo<kOwner>) + sizeof(ItemInfo<kStreamed>));
    owner_chunks_ = streamed_chunks_ + kStages * kStreamed * kStride;
  }

  ItemInfo<kOwner>* owner_info;
  ItemInfo<kStreamed>* streamed_info;

  CCP_DEVICE int64_t chunks() const { return chunks_of(dim_); }
  CCP_DEVICE float* streamed_chunk(int64_t load) const {
    return streamed_chunks_ + load % kStages * kStreamed * kStride;
  }

  // Starts load number `load`: chunk `chunk` of the streamed items from position `first` on, and of the owned ones.
  CCP_DEVICE void start(int64_t load, int64_t first_owner, bool with_owner, int64_t first, int64_t chunk) {
    start_chunk<kStreamed>(streamed_, first, dim_, chunk * kChunk, streamed_chunk(load));
    if (with_owner) start_chunk<kOwner>(owner_, first_owner, dim_, chunk * kChunk, owner_chunk(load, chunk));
  }

  // Adds the chunk's part of the products, and of the squares.
  template <Products products>
  CCP_DEVICE void multiply_chunk(int64_t load, int64_t chunk, FragmentD (&dot)[kM<kOwner>][kN]) {
    const float *owner = owner_chunk(load, chunk), *streamed = streamed_chunk(load);
    const int lane = int(threadIdx.x) % kWarp, g = lane / 4, t = lane % 4;
#pragma unroll 1  // a step has work enough to hide the loop, and unrolled it costs registers
    for (int k = 0; k < kChunk; k += 8) {
      FragmentA a[kM<kOwner>];
      FragmentB b[kN];
#pragma unroll
      for (int m = 0; m < kM<kOwner>; ++m)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          a[m].v[i] = owner[(first_owner_of_warp() + m * 16 + g + i % 2 * 8) * kStride + k + t + i / 2 * 4];
#pragma unroll
      for (int n = 0; n < kN; ++n)
#pragma unroll
        for (int i = 0; i < 2; ++i)
          b[n].v[i] = streamed[(first_streamed_of_warp() + n * 8 + g) * kStride + k + t + i * 4];
      multiply<products>(dot, a, b);
    }
    add_squares(owner, streamed);
  }

  // Fills the infos once all chunks have passed. Nobody may read them before a barrier.
  CCP_DEVICE void describe(int64_t first_owner, int64_t first) {
    const int i = int(threadIdx.x);
    if (i < kOwner)
      describe_item(owner_, owner_.at(first_owner + i), dim_, normalize_, squares_, i, *owner_info);
    else if (i < kOwner + kStreamed)
      describe_item(streamed_, streamed_.at(first + i - kOwner), dim_, normalize_, squares_, i - kOwner,
                    *streamed_info);
    squares_ = 0;
  }

  // The tile's items that fragment (m, n), number i of this lane belongs to.
  CCP_DEVICE int owner_index(int m, int i) const {
    return first_owner_of_warp() + m * 16 + int(threadIdx.x) % kWarp / 4 + i / 2 * 8;
  }
  CCP_DEVICE int streamed_index(int n, int i) const {
    return first_streamed_of_warp() + n * 8 + int(threadIdx.x) % 4 * 2 + i % 2;
  }

  // ‖a‖² + ‖r‖² - 2a·r cancels for close pairs, and so does the gradient's w·a - w·r; that is where both matter most.
  // They are computed from the differences. Such pairs are rare (its own class).
  template <Metric metric>
  CCP_DEVICE bool is_close(float x, int o, int s) const {
    const float squared = metric == Metric::kDistance ? x * x : x;
    return metric != Metric::kDot && squared < kClose * (owner_info->squared_norm[o] + streamed_info->squared_norm[s]);
  }

  // The metric of a pair, given its dot product of raw vectors; from the differences by the whole warp, one pair at a
  // time, where it has to be. All lanes of a warp call this together.
  template <Metric metric>
  CCP_DEVICE float value(float dot, int o, int s) const {
    const float product = dot * owner_info->scale[o] * streamed_info->scale[s];
    const float norms = owner_info->squared_norm[o] + streamed_info->squared_norm[s];
    float x = metric == Metric::kDot ? product : norms - 2 * product;
    const bool real = owner_info->id[o] >= 0 && streamed_info->id[s] >= 0;
    constexpr Metric squared = metric == Metric::kDot ? Metric::kDot : Metric::kSquaredDistance;
    const bool again = real && (is_close<squared>(x, o, s) || owner_info->extreme[o] || streamed_info->extreme[s]);
    unsigned lanes = __ballot_sync(kFullWarp, again);
    while (lanes) {
      const int lane = __ffs(int(lanes)) - 1;
      lanes &= lanes - 1;
      const int own = __shfl_sync(kFullWarp, o, lane), other = __shfl_sync(kFullWarp, s, lane);
      const float exact = exact_pair(metric == Metric::kDot, owner_.side, owner_info->id[own], owner_info->scale[own],
                                     streamed_.side, streamed_info->id[other], streamed_info->scale[other], dim_);
      if (int(threadIdx.x) % kWarp == lane) x = exact;
    }
    return metric == Metric::kDistance ? ::sqrtf(x) : x;
  }

 private:
  // Vectors without components pass as one chunk of zeros.
  CCP_HD static int64_t chunks_of(int64_t dim) { return dim > kChunk ? divide_up(dim, kChunk) : 1; }

  static constexpr float kClose = 1.0f / 16;

  CCP_DEVICE int first_owner_of_warp() const { return int(threadIdx.x) / kWarp / kWarpColumns * (kM<kOwner> * 16); }
  CCP_DEVICE int first_streamed_of_warp() const { return int(threadIdx.x) / kWarp % kWarpColumns * (kN * 8); }

  CCP_DEVICE float* owner_chunk(int64_t load, int64_t chunk) const {
    return owner_chunks_ + (resident_ ? chunk : load % kStages) * kOwner * kStride;
  }

  CCP_DEVICE void add_squares(const float* owner, const float* streamed) {
    const int i = int(threadIdx.x);
    if (i >= kOwner + kStreamed) return;
    const float* v = i < kOwner ? owner + i * kStride : streamed + (i - kOwner) * kStride;
#pragma unroll
    for (int d = 0; d < kChunk; d += 4) {
      const float4 four = *reinterpret_cast<const float4*>(v + d);
      squares_ += four.x * four.x + four.y * four.y + four.z * four.z + four.w * four.w;
    }
  }

  const Items owner_, streamed_;
  const int64_t dim_;
  const Normalize normalize_;
  const bool resident_;
  float *streamed_chunks_, *owner_chunks_;
  float squares_ = 0;
};

}  // namespace cuda
}  // namespace ccp
