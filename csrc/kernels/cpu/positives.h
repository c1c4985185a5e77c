// The first pass of losses that compare a row's negatives with its positives: a table of the distances to the columns
// of the row's own class, by their ordinal within the class, for every block of 64 rows.
#pragma once

#include "kernels/cpu/sweep.h"

namespace ccp {
namespace CCP_CAPABILITY {

template <class T>
class PositivesTable {
  using V = Vec<T>;
  static constexpr int L = kLanes<T>;
  static constexpr int64_t kVectors = kTileRows / L;

 public:
  // `blocks` tables; `counters` sets of counters (a block has one per slice).
  PositivesTable(const SimilarityProblem& problem, int64_t width, bool used, int64_t blocks, int64_t counters)
      : p_(problem),
        width_(width),
        most_(used ? problem.column_classes.largest : 0),
        distances_(blocks * kVectors * most_),
        farthest_(blocks * kVectors),
        active_(counters * kVectors * most_) {
    for (int64_t i = 0; i < counters * kVectors * most_; ++i) active_[i] = V{};
  }

  Positives<V> of(int64_t block, int64_t counter, int64_t vector) {
    return {most_, distances_ + (block * kVectors + vector) * most_, active_ + (counter * kVectors + vector) * most_,
            farthest_[block * kVectors + vector]};
  }

  void clear_counters(int64_t counter) {
    for (int64_t i = 0; i < kVectors * most_; ++i) active_[counter * kVectors * most_ + i] = V{};
  }
  void add_counters(int64_t to, int64_t from) {
    V *a = active_ + to * kVectors * most_, *b = active_ + from * kVectors * most_;
    for (int64_t i = 0; i < kVectors * most_; ++i) a[i] = a[i] + b[i];
  }

  int64_t ordinal(int64_t column) const {
    return p_.column_classes.ordinals ? p_.column_classes.ordinals[column] : column % p_.columns.group;
  }

  // Fills table `block` for these rows.
  void gather(const RowBlock<T>& rows, int64_t block) {
    if (most_ == 0) return;
    for (int64_t i = 0; i < kVectors * most_; ++i) distances_[block * kVectors * most_ + i] = V{} - infinity();
    if (p_.known_positives.count > 0)
      read(rows, p_.known_positives.distances, distances_ + block * kVectors * most_);
    else
      gather_columns(rows, block);
    for (int64_t v = 0; v < kVectors; ++v) {
      V farthest = V{} - infinity();
      for (int64_t o = 0; o < most_; ++o)
        farthest = max_keep_nan(farthest, distances_[(block * kVectors + v) * most_ + o]);
      farthest_[block * kVectors + v] = farthest;
    }
  }

  // Whether the counts over all columns were given; read_counters() takes those of these rows.
  bool are_counted() const { return p_.known_positives.active != nullptr; }
  void read_counters(const RowBlock<T>& rows, int64_t counter) {
    read(rows, p_.known_positives.active, active_ + counter * kVectors * most_);
  }
  void write_counters(const RowBlock<T>& rows, int64_t counter, void* out) const {
    for (int64_t i = 0; i < rows.count; ++i)
      for (int64_t o = 0; o < most_; ++o)
        static_cast<T*>(out)[rows.panel.ids[i] * most_ + o] = active_[(counter * kVectors + i / L) * most_ + o][i % L];
  }

 private:
  // table: [vectors, most] of these rows, from numbers [rows, most] of all.
  void read(const RowBlock<T>& rows, const void* numbers, V* table) const {
    for (int64_t i = 0; i < rows.count; ++i)
      for (int64_t o = 0; o < most_; ++o)
        table[i / L * most_ + o][i % L] = static_cast<const T*>(numbers)[rows.panel.ids[i] * most_ + o];
  }

  // The classes present among the rows, each one's columns, tile by tile.
  void gather_columns(const RowBlock<T>& rows, int64_t block) {
    PanelStorage<T> storage(kTileColumns, width_);
    Buffer<T> x(kTileRows * kTileColumns);
    Buffer<int64_t> members(most_);
    for (int64_t i = 0; i < rows.count; ++i) {
      const Integer<T> label = rows.panel.labels[i];
      if (label < 0 || seen_before(rows, i)) continue;
      const int64_t count = columns_of(label, members);
      for (int64_t first = 0; first < count; first += kTileColumns) {
        const int64_t n = smaller(kTileColumns, count - first);
        load_panel(p_.columns, p_.dim, p_.normalize, static_cast<const int64_t*>(members), first, n, n,
                   storage.panel());
        const Panel<T> columns = storage.panel().from(0, n);
        measure_tile<Metric::kDistance>(rows, columns, p_.dim, static_cast<T*>(x));
        for (int64_t r = i; r < rows.count; ++r)
          if (rows.panel.labels[r] == label) write_row(block, r, rows, columns, first, x);
      }
    }
  }

  static constexpr T infinity() { return T(__builtin_inf()); }
  static V max_keep_nan(V a, V b) { return select(!(b <= a), b, a); }

  static bool seen_before(const RowBlock<T>& rows, int64_t i) {
    for (int64_t before = 0; before < i; ++before)
      if (rows.panel.labels[before] == rows.panel.labels[i]) return true;
    return false;
  }

  int64_t columns_of(int64_t label, int64_t* members) const {
    const ClassIndex& index = p_.column_classes;
    if (label >= index.classes) return 0;
    if (!index.members) {
      for (int64_t k = 0; k < p_.columns.group; ++k) members[k] = label * p_.columns.group + k;
      return p_.columns.group;
    }
    const int64_t count = index.starts[label + 1] - index.starts[label];
    for (int64_t k = 0; k < count; ++k) members[k] = index.members[index.starts[label] + k];
    return count;
  }

  void write_row(int64_t block, int64_t row, const RowBlock<T>& rows, const Panel<T>& columns, int64_t first,
                 const T* x) {
    V* table = distances_ + (block * kVectors + row / L) * most_;
    for (int64_t k = 0; k < columns.count; ++k)
      if (!(p_.exclude_diagonal && rows.panel.ids[row] == columns.ids[k]))
        table[first + k][row % L] = x[k * kTileRows + row];
  }

  const SimilarityProblem& p_;
  const int64_t width_, most_;
  Buffer<V> distances_, farthest_, active_;
};

}  // namespace CCP_CAPABILITY
}  // namespace ccp
