// What is known of a tile's items once their components have passed, and of its pairs once their dot products are
// there.
#pragma once

#include "kernels/cuda/similarity_loss/chunk.cuh"

namespace ccp {
namespace cuda {

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

CCP_DEVICE double exact_squares(const Side& side, int64_t item, int64_t dim) {
  double sum = 0;
#pragma unroll 1
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

// Of all items of a tile, whose squares have been added up. Nobody may read it before a barrier.
template <class T, int kItems, int kTeam, class ItemOf>
CCP_DEVICE void describe_items(const Items& items, const ItemOf& item_of, int64_t dim, Normalize normalize,
                               Squares<T, kItems, kTeam>& squares, ItemInfo<kItems>& info) {
#pragma unroll
  for (int round = 0; round < squares.kRounds; ++round) {
    const float sum = squares.take(round);
    const int i = squares.item(round);
    if (squares.is_first()) describe_item(items, item_of(i), dim, normalize, sum, i, info);
  }
}

// The dot product or squared distance of a pair, from the normalised vectors themselves; a warp together.
CCP_DEVICE float exact_pair(bool dot, const Side& a, int64_t item_a, float scale_a, const Side& b, int64_t item_b,
                            float scale_b, int64_t dim) {
  float sum = 0;
#pragma unroll 1
  for (int64_t d = int(threadIdx.x) % kWarp; d < dim; d += kWarp) {
    const float x = load_scaled(a, item_a * dim + d, scale_a);
    const float y = load_scaled(b, item_b * dim + d, scale_b);
    sum += dot ? x * y : (x - y) * (x - y);
  }
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(kFullWarp, sum, lanes);
  return sum;
}

// The pairs of one tile, spread over the registers of kWarps warps, of which kColumns lie side by side.
template <int kOwner, int kColumns = kWarpColumns>
class TilePairs {
 public:
  // Of a warp, and its part of the tile.
  static constexpr int kRowFragments = kOwner / (kWarps / kColumns) / 16, kColumnFragments = kStreamed / kColumns / 8;
  using Fragments = FragmentD[kRowFragments][kColumnFragments];

  CCP_DEVICE TilePairs(const Items& owner, const Items& streamed, int64_t dim, ItemInfo<kOwner>* owner_info,
                       ItemInfo<kStreamed>* streamed_info)
      : owner_info(owner_info), streamed_info(streamed_info), owner_(owner), streamed_(streamed), dim_(dim) {}

  ItemInfo<kOwner>* owner_info;
  ItemInfo<kStreamed>* streamed_info;

  // Where a warp's part of the tile begins.
  CCP_DEVICE static int first_owner() { return int(threadIdx.x) / kWarp / kColumns * (kRowFragments * 16); }
  CCP_DEVICE static int first_streamed() { return int(threadIdx.x) / kWarp % kColumns * (kColumnFragments * 8); }

  // The tile's items that fragment (m, n), number i of this lane belongs to.
  CCP_DEVICE static int owner_index(int m, int i) { return owner_index_of(int(threadIdx.x) % kWarp, m, i); }
  CCP_DEVICE static int streamed_index(int n, int i) { return streamed_index_of(int(threadIdx.x) % kWarp, n, i); }

  // ‖a‖² + ‖r‖² - 2a·r cancels for close pairs, and so does the gradient's w·a - w·r; that is where both matter most.
  // They are computed from the differences. Such pairs are rare where embeddings are spread: an anchor's own class, if
  // that. Of an untrained network in eval mode most can be, since all cosines lie near one (.89 to 1.00 of the pairs of
  // the project's own networks; none while they train): `collapsed` in `ccp-bench gpu` shows what that costs.
  template <Metric metric>
  CCP_DEVICE bool is_close(float x, int o, int s) const {
    const float squared = metric == Metric::kDistance ? x * x : x;
    return metric != Metric::kDot && squared < kClose * (owner_info->squared_norm[o] + streamed_info->squared_norm[s]);
  }

  // Turns the dot products of raw vectors into the metric of the pairs. All lanes of a warp call this together.
  template <Metric metric>
  CCP_DEVICE void measure(Fragments& x) const {
    constexpr Metric squared = metric == Metric::kDot ? Metric::kDot : Metric::kSquaredDistance;
    unsigned again = 0;  // a bit for each of the lane's pairs that its products cannot tell
    static_assert(kRowFragments * kColumnFragments * 4 <= 32, "a bit for each pair");
    for_each_pair([&](int m, int n, int i, int o, int s) {
      const float product = x[m][n].v[i] * owner_info->scale[o] * streamed_info->scale[s];
      const float norms = owner_info->squared_norm[o] + streamed_info->squared_norm[s];
      x[m][n].v[i] = metric == Metric::kDot ? product : norms - 2 * product;
      if (is_close<squared>(x[m][n].v[i], o, s) || owner_info->extreme[o] || streamed_info->extreme[s])
        again |= 1u << pair_number(m, n, i);
    });
    if (__any_sync(kFullWarp, again != 0)) measure_again<squared>(x, again);
    if (metric == Metric::kDistance)
      for_each_pair([&](int m, int n, int i, int, int) { x[m][n].v[i] = ::sqrtf(x[m][n].v[i]); });
  }

 private:
  static constexpr float kClose = 1.0f / 16;

  CCP_DEVICE static int owner_index_of(int lane, int m, int i) { return first_owner() + m * 16 + lane / 4 + i / 2 * 8; }
  CCP_DEVICE static int streamed_index_of(int lane, int n, int i) {
    return first_streamed() + n * 8 + lane % 4 * 2 + i % 2;
  }
  CCP_DEVICE static constexpr int pair_number(int m, int n, int i) { return (m * kColumnFragments + n) * 4 + i; }

  // Columns outside: what is known of one serves the lane's rows at once.
  template <class F>
  CCP_DEVICE static void for_each_pair(const F& f) {
#pragma unroll
    for (int n = 0; n < kColumnFragments; ++n)
#pragma unroll
      for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int m = 0; m < kRowFragments; ++m)
#pragma unroll
          for (int half = 0; half < 4; half += 2) f(m, n, half + i, owner_index(m, half), streamed_index(n, i));
  }

  // The pairs of these bits from the vectors themselves, by the whole warp, one at a time.
  template <Metric metric>
  CCP_DEVICE void measure_again(Fragments& x, unsigned again) const {
#pragma unroll 1
    for (unsigned lanes = __ballot_sync(kFullWarp, again != 0); lanes; lanes = __ballot_sync(kFullWarp, again != 0)) {
      const int lane = __ffs(int(lanes)) - 1, pair = __shfl_sync(kFullWarp, __ffs(int(again)) - 1, lane);
      const int o = owner_index_of(lane, pair / 4 / kColumnFragments, pair % 4);
      const int s = streamed_index_of(lane, pair / 4 % kColumnFragments, pair % 4);
      const bool mine = int(threadIdx.x) % kWarp == lane;
      if (mine) again &= again - 1;
      if (owner_info->id[o] < 0 || streamed_info->id[s] < 0) continue;
      const float exact = exact_pair(metric == Metric::kDot, owner_.side, owner_info->id[o], owner_info->scale[o],
                                     streamed_.side, streamed_info->id[s], streamed_info->scale[s], dim_);
      // Registers have no addresses.
      for_each_pair([&](int m, int n, int i, int, int) {
        if (mine && pair == pair_number(m, n, i)) x[m][n].v[i] = exact;
      });
    }
  }

  const Items& owner_;
  const Items& streamed_;
  const int64_t dim_;
};

}  // namespace cuda
}  // namespace ccp
