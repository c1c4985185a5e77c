// A group of anchors stays in the core's cache while a slice of the references streams past it, a panel at a time. The
// matrix product of a tile dominates: an entry costs one comparison with its row's bound, and few pass.
#include "kernels/cpu/nearest_references.h"

#include "kernels/cpu/nearest_lists.h"

namespace ccp {
namespace CCP_CAPABILITY {
namespace {

constexpr int64_t kMostGroupTiles = 8;
constexpr int64_t kGroupNumbers = 1 << 17;  // what a group's anchors may hold, if it is more than a tile of them
constexpr int64_t kEnoughTasks = 16;

template <class T>
class NearestSearch {
  static constexpr int L = kLanes<T>;

 public:
  explicit NearestSearch(const NearestReferencesProblem& problem)
      : p_(problem),
        k_(smaller(p_.k, p_.references.count)),
        stride_(ceil_div(larger(p_.dim, 1), L) * L),
        padded_(ceil_div(p_.anchors.count, kTileRows) * kTileRows),
        group_rows_(kTileRows * larger(1, smaller(kMostGroupTiles, kGroupNumbers / (kTileRows * stride_)))),
        groups_(ceil_div(padded_, group_rows_)),
        panels_(ceil_div(p_.references.count, kTileColumns)),
        // Few groups share the references out among them, so that every thread has work.
        slices_(groups_ ? smaller(ceil_div(kEnoughTasks, groups_), larger(panels_, 1)) : 0),
        rounding_((T(2.5) * T(p_.dim) + 16) * (sizeof(T) == 4 ? T(6e-8) : T(1.2e-16))),
        lists_(slices_ * padded_, k_),
        bad_anchors_(groups_ * slices_),
        bad_references_(groups_ * slices_) {}

  NearestReferencesStatus run() {
    const int64_t tasks = groups_ * slices_;
    p_.parallel_for(tasks, [&](int64_t task) { search(task); });
    NearestReferencesStatus status{-1, -1};
    for (int64_t task = 0; task < tasks; ++task) {
      keep_lowest(status.bad_anchor, bad_anchors_[task]);
      keep_lowest(status.bad_reference, bad_references_[task]);
    }
    if (status.bad_anchor < 0 && status.bad_reference < 0)
      p_.parallel_for(groups_, [&](int64_t group) { write(group); });
    return status;
  }

 private:
  // What a squared distance from products is off from one from differences, at most: rounding_ · (‖a‖² + ‖r‖²), by sums
  // of dim products in any order, or kTiny, by underflow.
  static constexpr T kTiny = sizeof(T) == 4 ? T(1e-30) : T(1e-290);

  // One group of anchors and one slice of the references.
  void search(int64_t task) {
    const int64_t group = task / slices_, slice = task % slices_;
    const int64_t first = group * group_rows_, rows = smaller(group_rows_, padded_ - first);
    const int64_t real = smaller(rows, p_.anchors.count - first);
    const PanelStorage<T> anchors(rows, stride_), references(kTileColumns, stride_);
    Buffer<T> transposed(rows * p_.dim), x(kTileRows * kTileColumns);
    bad_anchors_[task] = load_checked(p_.anchors, first, real, rows, anchors.panel());
    bad_references_[task] = -1;
    const auto tile = [&](int64_t t) {
      return RowBlock<T>{anchors.panel().from(t, kTileRows), transposed + t * p_.dim, smaller(kTileRows, real - t)};
    };
    for (int64_t t = 0; t < rows; t += kTileRows) transpose_rows(tile(t), p_.dim);
    lists_.clear(slice * padded_ + first, rows, rows - real);

    for (int64_t panel = panels_ * slice / slices_; panel < panels_ * (slice + 1) / slices_; ++panel) {
      const int64_t begin = panel * kTileColumns, count = smaller(kTileColumns, p_.references.count - begin);
      keep_lowest(bad_references_[task], load_checked(p_.references, begin, count, count, references.panel()));
      for (int64_t t = 0; t < rows; t += kTileRows) {
        multiply_tile<T>(tile(t), references.panel().from(0, count), p_.dim, x);
        take_nearest(tile(t), slice * padded_ + first + t, references.panel().from(0, count), x);
      }
    }
  }

  // Loads a panel; returns the lowest row that cannot be compared, or -1.
  int64_t load_checked(const EmbeddingSide& side, int64_t begin, int64_t count, int64_t padded,
                       const Panel<T>& panel) const {
    constexpr T kMost = (sizeof(T) == 4 ? T(3.4028234e38f) : T(1.7976931348623157e308)) / 4;
    load_panel<T>(side, p_.dim, p_.normalize, nullptr, begin, count, padded, panel);
    for (int64_t i = 0; i < count; ++i)
      if (!(panel.squared_norm[i] <= kMost)) return begin + i;
    return -1;
  }

  // The pairs of a tile, given their dot products. A distance is ‖a‖² + ‖r‖² - 2a·r, or computed from the differences
  // for close pairs, but only where rounding leaves it open whether that is below the bound: where all vectors have
  // come near each other, most pairs are close.
  void take_nearest(const RowBlock<T>& rows, int64_t first_list, const Panel<T>& columns, const T* x) {
    for (int64_t v = 0; v < rows.vectors(); ++v) {
      const Vec<T> norms = load(rows.panel.squared_norm + v * L);
      const Mask<T> ids = load_integers<T>(rows.panel.ids + v * L);
      const int64_t list = first_list + v * L;
      Vec<T> bounds = load(lists_.bounds(list));
      for (int64_t j = 0; j < columns.count; ++j) {
        const Vec<T> size = norms + columns.squared_norm[j];
        const Vec<T> squared = size - load(x + j * kTileRows + v * L) * T(2);
        Mask<T> nearer = squared - size * rounding_ < bounds + kTiny;
        if (p_.exclude_diagonal) nearer = nearer & (ids != columns.ids[j]);
        uint32_t lanes = lane_bits(nearer);
        if (!lanes) continue;
        const uint32_t close = lane_bits(close_pairs(squared, size));
        for (; lanes; lanes &= lanes - 1) {
          const int i = __builtin_ctz(lanes);
          T exact = squared[i];
          if (close >> i & 1)
            exact =
                T(squared_distance(rows.panel.values + (v * L + i) * stride_, columns.values + j * stride_, stride_));
          if (exact < bounds[i]) lists_.take(list + i, {exact, columns.ids[j]});
        }
        bounds = load(lists_.bounds(list));
      }
    }
  }

  // Puts the slices' lists of a group's anchors together.
  void write(int64_t group) {
    T* distances = static_cast<T*>(p_.distances);
    for (int64_t row = group * group_rows_; row < smaller((group + 1) * group_rows_, p_.anchors.count); ++row) {
      for (int64_t slice = 1; slice < slices_; ++slice) lists_.merge(row, slice * padded_ + row);
      int64_t count;
      const Neighbor<T>* nearest = lists_.sorted(row, &count);
      for (int64_t i = 0; i < p_.k; ++i) {
        p_.indices[row * p_.k + i] = i < count ? int64_t(nearest[i].index) : -1;
        distances[row * p_.k + i] = i < count ? sqrt(nearest[i].squared) : T(__builtin_inf());
      }
    }
  }

  static void keep_lowest(int64_t& lowest, int64_t row) {
    if (row >= 0 && (lowest < 0 || row < lowest)) lowest = row;
  }

  const NearestReferencesProblem& p_;
  const int64_t k_, stride_, padded_, group_rows_, groups_, panels_, slices_;
  const T rounding_;
  NearestLists<T> lists_;  // row i of slice s has list s · padded_ + i
  Buffer<int64_t> bad_anchors_, bad_references_;
};

}  // namespace

NearestReferencesStatus nearest_references(const NearestReferencesProblem& problem) {
  return problem.use_double ? NearestSearch<double>(problem).run() : NearestSearch<float>(problem).run();
}

}  // namespace CCP_CAPABILITY
}  // namespace ccp
