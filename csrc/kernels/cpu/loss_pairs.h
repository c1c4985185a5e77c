// What forward and backward share: a loss over the pairs of a problem, in the tiles of a sweep.
#pragma once

#include <type_traits>

#include "kernels/cpu/positives.h"

namespace ccp {
namespace CCP_CAPABILITY {
namespace {

template <class T, class Loss>
class LossPairs {
 protected:
  static constexpr int L = kLanes<T>;
  static constexpr int64_t kVectors = kTileRows / L;  // per row block
  using V = Vec<T>;
  using M = Mask<T>;
  using State = typename Loss::template State<V>;
  using RowState = typename Loss::template State<T>;
  static_assert(!Loss::kGrouped || (Loss::kMetric == Metric::kDot && !Loss::kHinge && !Loss::kUsesPositives),
                "a group is of similarities, and always whole");

  explicit LossPairs(const SimilarityProblem& problem)
      : p_(problem), loss_(problem.parameters), sweep_(problem, streams_columns(problem), Loss::kGrouped) {}

  // Tables of positives are kept per resident block. In the rare case that they would be large (a class with thousands
  // of columns), the rows are streamed instead, and each thread has one table at a time.
  static bool streams_columns(const SimilarityProblem& p) {
    if (p.columns.count < p.rows.count) return false;
    const int64_t table = p.rows.count * p.column_classes.largest * int64_t(sizeof(T)) * (2 + kMostSlices);
    return !Loss::kUsesPositives || table <= (int64_t(4) << 20);
  }

  PositivesTable<T> make_positives(int64_t slices) {
    const bool stream_columns = sweep_.streams_columns();
    const int64_t tiles = sweep_.resident_tiles();
    const bool used = Loss::kUsesPositives;
    if (!stream_columns) return PositivesTable<T>(p_, sweep_.width(), used, slices, slices);
    PositivesTable<T> table(p_, sweep_.width(), used, tiles, slices * tiles);
    p_.parallel_for(tiles, [&](int64_t b) { table.gather(sweep_.resident_rows(b), b); });
    return table;
  }

  // Per-block tables are numbered by resident tile, or by slice where the blocks are streamed.
  int64_t table_of(const Visit<T>& visit) const {
    return sweep_.streams_columns() ? visit.row_slot % sweep_.resident_tiles() : visit.row_slot;
  }

  // The lanes in which column j is the row itself.
  M itself(const Visit<T>& visit, int64_t j, int64_t v) const {
    return load_integers<T>(visit.rows.panel.ids + v * L) == visit.columns.ids[j];
  }

  // Which of a vector of rows are of column j's class.
  struct SameClass {
    M labels;
    const Integer<T>* columns;
    M operator()(int64_t j) const { return labels == columns[j]; }
  };
  struct NoneSame {
    NoLanes operator()(int64_t) const { return {}; }
  };
  // Calls f(v, SameClass) for every vector v of rows, or f(v, NoneSame) where none of its pairs in the tile is of one
  // class, nor to be excluded: the code for that has no masks, and with many classes nearly all tiles go through it.
  template <class F>
  void for_classes(const Visit<T>& visit, const F& f) const {
    const Integer<T>* columns = visit.columns.labels;
    Integer<T> lowest = columns[0], highest = columns[0];
    for (int64_t j = 1; j < visit.columns.count; ++j) {
      lowest = columns[j] < lowest ? columns[j] : lowest;
      highest = columns[j] > highest ? columns[j] : highest;
    }
    for (int64_t v = 0; v < visit.rows.vectors(); ++v) {
      const M labels = load_integers<T>(visit.rows.panel.labels + v * L);
      M met{};
      if (any((labels >= lowest) & (labels <= highest)))
        for (int64_t j = 0; j < visit.columns.count; ++j) met = met | (labels == columns[j]);
      if (p_.exclude_diagonal)
        for (int64_t j = 0; j < visit.columns.count; ++j) met = met | itself(visit, j, v);
      if (any(met))
        f(v, SameClass{labels, columns});
      else
        f(v, NoneSame{});
    }
  }

  // The pairs of a vector of rows with the columns of one group.
  struct Members {
    const T* cell;
    int64_t count;
    V operator()(int64_t k) const { return load(cell + k * kTileRows); }
  };
  // Columns that count as one.
  int64_t members() const { return Loss::kGrouped ? p_.columns.group : 1; }

  void count_positives(const int64_t* items, int64_t count, int64_t slices, PositivesTable<T>& positives) {
    const int64_t tiles = sweep_.resident_tiles();
    sweep_.run(
        items, count, nullptr, [](const RowBlock<T>&, int64_t) {},
        [&](const Visit<T>& visit) { count_tile(visit, positives); }, [](const Panel<T>&, int64_t) {});
    for (int64_t s = 1; s < slices; ++s)
      for (int64_t b = 0; b < tiles; ++b) positives.add_counters(b, s * tiles + b);
  }

  void count_positives_of(const RowBlock<T>& block, int64_t slice, PositivesTable<T>& positives) {
    positives.clear_counters(slice);
    Buffer<T> x(kTileRows * kTileColumns);
    for (int64_t r = 0; r < sweep_.resident_tiles(); ++r)
      count_tile(Visit<T>{block, slice, sweep_.resident_columns(r), 0, x, nullptr, nullptr}, positives);
  }

  void count_tile(const Visit<T>& visit, PositivesTable<T>& positives) {
    if constexpr (Loss::kUsesPositives) {
      measure_tile<Loss::kMetric>(visit.rows, visit.columns, p_.dim, visit.x);
      for (int64_t v = 0; v < visit.rows.vectors(); ++v) {
        const M labels = load_integers<T>(visit.rows.panel.labels + v * L);
        const Positives<V> row = positives.of(table_of(visit), visit.row_slot, v);
        // A sample's pair with itself has the same label: it is no negative.
        for (int64_t j = 0; j < visit.columns.count; ++j)
          loss_.count_active(load(visit.x + j * kTileRows + v * L), M(labels == visit.columns.labels[j]), row);
      }
    }
  }

  const SimilarityProblem& p_;
  const Loss loss_;
  const Sweep<T> sweep_;
};

}  // namespace
}  // namespace CCP_CAPABILITY
}  // namespace ccp
