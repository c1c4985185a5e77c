// Backward: each tile is computed again and turned into gradients of both sides.
#pragma once

#include "kernels/cpu/loss_pairs.h"

namespace ccp {
namespace CCP_CAPABILITY {
namespace {

template <class T, class Loss>
class LossBackward : LossPairs<T, Loss> {
  using Pairs = LossPairs<T, Loss>;
  using Pairs::count_positives;
  using Pairs::count_positives_of;
  using Pairs::for_classes;
  using Pairs::itself;
  using Pairs::kVectors;
  using Pairs::L;
  using Pairs::loss_;
  using Pairs::make_positives;
  using Pairs::members;
  using Pairs::p_;
  using Pairs::sweep_;
  using Pairs::table_of;
  using typename Pairs::M;
  using typename Pairs::Members;
  using typename Pairs::SameClass;
  using typename Pairs::V;

  // What grad() needs of each row of a block: the saved numbers, then the weights of the positive and negative part.
  static constexpr int64_t kRowInfo = kSaved + 2;

 public:
  explicit LossBackward(const SimilarityProblem& problem) : Pairs(problem) {}

  void backward(const SimilarityBackward& out) {
    // Where a hinge is inactive for a whole item of the streamed side, its gradient is exactly zero: leave it out.
    Buffer<int64_t> chosen(Loss::kHinge ? sweep_.streamed_side().count : 0);
    int64_t count = sweep_.streamed_side().count;
    if (Loss::kHinge) {
      count = choose_active(out.active, chosen);
      zero_streamed_gradient(out);
    }
    const int64_t* items = Loss::kHinge ? static_cast<int64_t*>(chosen) : nullptr;

    const bool stream_columns = sweep_.streams_columns();
    const int64_t slices = sweep_.slices(count), tiles = sweep_.resident_tiles();
    PositivesTable<T> positives = make_positives(slices);
    if (Loss::kUsesPositives && stream_columns) {
      if (positives.are_counted())
        for (int64_t b = 0; b < tiles; ++b) positives.read_counters(sweep_.resident_rows(b), b);
      else
        count_positives(items, count, slices, positives);
    }

    // Gradients with respect to the normalised embeddings, and how much of the embedding itself is to be added.
    const int64_t row_slots = stream_columns ? slices * tiles : slices;
    const int64_t column_slots = stream_columns ? slices : slices * tiles;
    Gradient rows(out.grad_rows ? row_slots : 0, sweep_.stride());
    Gradient columns(out.grad_columns ? column_slots : 0, sweep_.stride());
    Buffer<T> row_info((stream_columns ? tiles : slices) * kRowInfo * kTileRows);
    if (stream_columns)
      for (int64_t b = 0; b < tiles; ++b)
        load_row_info(sweep_.resident_rows(b), out, row_info + b * kRowInfo * kTileRows);

    sweep_.run(
        items, count, stream_columns ? out.grad_columns : out.grad_rows,
        [&](const RowBlock<T>& block, int64_t slice) {
          if (stream_columns) {
            columns.clear(slice);
            return;
          }
          rows.clear(slice);
          load_row_info(block, out, row_info + slice * kRowInfo * kTileRows);
          positives.gather(block, slice);
          if (Loss::kUsesPositives && positives.are_counted())
            positives.read_counters(block, slice);
          else if (Loss::kUsesPositives)
            count_positives_of(block, slice, positives);
        },
        [&](const Visit<T>& visit) {
          const int64_t info = table_of(visit);
          gradient_tile(visit, row_info + info * kRowInfo * kTileRows, positives, rows, columns);
        },
        [&](const Panel<T>& panel, int64_t slice) {
          if (stream_columns)
            columns.store(slice, panel, p_, out.grad_columns, p_.columns.dtype);
          else
            rows.store(slice, panel, p_, out.grad_rows, p_.rows.dtype);
        });

    Gradient& resident = stream_columns ? rows : columns;
    p_.parallel_for(tiles, [&](int64_t t) {
      for (int64_t s = 1; s < slices; ++s) resident.add(t, s * tiles + t);
      if (stream_columns)
        resident.store(t, sweep_.resident_rows(t).panel.from(0, sweep_.resident_rows(t).count), p_, out.grad_rows,
                       p_.rows.dtype);
      else
        resident.store(t, sweep_.resident_columns(t), p_, out.grad_columns, p_.columns.dtype);
    });
  }

  // In how many pairs each positive takes part, where that is asked for by itself.
  void count(void* out) {
    if constexpr (Loss::kUsesPositives) {
      const int64_t streamed = sweep_.streamed_side().count, slices = sweep_.slices(streamed);
      PositivesTable<T> positives = make_positives(slices);
      if (sweep_.streams_columns()) {
        count_positives(nullptr, streamed, slices, positives);
        for (int64_t b = 0; b < sweep_.resident_tiles(); ++b) positives.write_counters(sweep_.resident_rows(b), b, out);
        return;
      }
      sweep_.run(
          nullptr, streamed, nullptr,
          [&](const RowBlock<T>& block, int64_t slice) {
            positives.gather(block, slice);
            count_positives_of(block, slice, positives);
            positives.write_counters(block, slice, out);
          },
          [](const Visit<T>&) {}, [](const Panel<T>&, int64_t) {});
    }
  }

 private:
  // The gradients of some tiles of one side, [slots, 64, stride].
  class Gradient {
   public:
    Gradient(int64_t slots, int64_t stride)
        : slots_(slots), stride_(stride), values_(slots * kTileRows * stride), along_(slots * kTileRows) {
      for (int64_t slot = 0; slot < slots; ++slot) clear(slot);
    }
    explicit operator bool() const { return slots_ > 0; }
    T* values(int64_t slot, int64_t i) { return values_ + (slot * kTileRows + i) * stride_; }
    T* along(int64_t slot) { return along_ + slot * kTileRows; }

    void clear(int64_t slot) {
      if (!slots_) return;
      memset(values(slot, 0), 0, sizeof(T) * size_t(kTileRows * stride_));
      memset(along(slot), 0, sizeof(T) * size_t(kTileRows));
    }
    void add(int64_t to, int64_t from) {
      if (!slots_) return;
      T *a = values(to, 0), *b = values(from, 0);
      for (int64_t i = 0; i < kTileRows * stride_; i += L) ccp::CCP_CAPABILITY::store(a + i, load(a + i) + load(b + i));
      for (int64_t i = 0; i < kTileRows; ++i) along(to)[i] += along(from)[i];
    }
    void store(int64_t slot, const Panel<T>& panel, const SimilarityProblem& p, void* out, Dtype dtype) {
      if (!slots_) return;
      for (int64_t i = 0; i < panel.count; ++i)
        store_gradient(values(slot, i), along(slot)[i], panel, i, p.normalize, p.dim, out, dtype);
    }

   private:
    int64_t slots_, stride_;
    Buffer<T> values_, along_;
  };

  int64_t choose_active(const uint8_t* active, int64_t* chosen) const {
    int64_t count = 0;
    for (int64_t i = 0; i < sweep_.streamed_side().count; ++i)
      if (active[i]) chosen[count++] = i;
    return count;
  }

  void zero_streamed_gradient(const SimilarityBackward& out) const {
    void* gradient = sweep_.streams_columns() ? out.grad_columns : out.grad_rows;
    const EmbeddingSide& side = sweep_.streamed_side();
    if (!gradient) return;
    const int64_t bytes = side.count * p_.dim * dtype_bytes(side.dtype);
    p_.parallel_for(kMostSlices, [&](int64_t s) {
      const int64_t begin = bytes * s / kMostSlices, end = bytes * (s + 1) / kMostSlices;
      memset(static_cast<char*>(gradient) + begin, 0, size_t(end - begin));
    });
  }

  void load_row_info(const RowBlock<T>& rows, const SimilarityBackward& out, T* info) const {
    const T* saved = static_cast<const T*>(out.row_state);
    for (int64_t i = 0; i < kTileRows; ++i) {
      const bool real = i < rows.count;
      const int64_t row = real ? int64_t(rows.panel.ids[i]) : 0;
      for (int k = 0; k < kSaved; ++k) info[k * kTileRows + i] = real ? saved[k * p_.rows.count + row] : T(0);
      const double grad = real ? out.grad_loss[out.reduction == Reduction::kNone ? row : 0] : 0;
      info[kSaved * kTileRows + i] = T(grad / out.normalizer[0]);
      info[(kSaved + 1) * kTileRows + i] = T(grad / out.normalizer[1]);
    }
  }

  // What grad() needs of a vector of rows.
  struct RowInfo {
    V saved[kSaved], pos_weight, neg_weight;
  };
  static RowInfo row_info(const T* info, int64_t v) {
    RowInfo row;
    for (int k = 0; k < kSaved; ++k) row.saved[k] = load(info + k * kTileRows + v * L);
    row.pos_weight = load(info + kSaved * kTileRows + v * L);
    row.neg_weight = load(info + (kSaved + 1) * kTileRows + v * L);
    return row;
  }

  // Overwrites the tile x, which holds products, with the coefficients of the pair gradients: row i gets coefficient ·
  // column j, and the other way round. A distance pulls along the difference of the two, so the negative coefficient
  // falls on the item itself (`along`); close pairs are done with here.
  void gradient_coefficients(const Visit<T>& visit, const T* info, PositivesTable<T>& positives, Gradient& rows,
                             Gradient& columns) const {
    // What falls on the item itself is lost where unit vectors are made of it (see store_gradient).
    const bool along = Loss::kMetric != Metric::kDot && p_.normalize != Normalize::kUnit;
    V column_sums[kTileColumns];
    for (int64_t j = 0; along && j < visit.columns.count; ++j) column_sums[j] = V{};
    for_classes(visit, [&](int64_t v, const auto& same) {
      const V row_sum = vector_coefficients(visit, v, same, row_info(info, v), positives, rows, columns,
                                            along ? column_sums : nullptr);
      if (along && rows) {
        T* of_rows = rows.along(visit.row_slot) + v * L;
        store(of_rows, load(of_rows) + row_sum);
      }
    });
    for (int64_t j = 0; along && columns && j < visit.columns.count; ++j)
      columns.along(visit.column_slot)[j] += sum_lanes<T>(column_sums[j]);
  }

  template <class Same>
  __attribute__((noinline)) V vector_coefficients(const Visit<T>& visit, int64_t v, const Same& same,
                                                  const RowInfo& row, PositivesTable<T>& positives, Gradient& rows,
                                                  Gradient& columns, V* column_sums) const {
    V row_sum{};
    for (int64_t j = 0; j < visit.columns.count; ++j) {
      T* cell = visit.x + j * kTileRows + v * L;
      const Measured<T> pair = measure<Loss::kMetric>(load(cell), visit.rows, v, visit.columns, j);
      V g = pair_gradient(visit, pair.x, same(j), row, positives, v, j);
      if constexpr (std::is_same_v<Same, SameClass>)
        if (p_.exclude_diagonal) g = select(itself(visit, j, v), V{}, g);
      if constexpr (Loss::kMetric != Metric::kDot) {
        // d‖a - r‖/da = (a - r)/d, zero at d = 0;  d‖a - r‖²/da = 2(a - r)
        V pull = Loss::kMetric == Metric::kDistance ? select(pair.x == T(0), V{}, g / pair.x) : g * T(2);
        if (pair.any_close) {
          const V squared = Loss::kMetric == Metric::kDistance ? pair.x * pair.x : pair.x;
          const M close = close_pairs(squared, pair.size) & (pull != T(0));
          add_differences(visit, v, j, close, pull, rows, columns);
          pull = select(close, V{}, pull);
        }
        row_sum = row_sum + pull;
        if (column_sums) column_sums[j] = column_sums[j] + pull;
        g = V{} - pull;
      }
      store(cell, g);
    }
    return row_sum;
  }

  // Moves the columns of the tile x that have a coefficient to its front, and lists them: all, where the loss is no
  // hinge.
  int64_t pack_touched(const Visit<T>& visit, int64_t* touched) const {
    int64_t count = 0;
    for (int64_t j = 0; j < visit.columns.count; ++j) {
      const T* from = visit.x + j * kTileRows;
      T* to = visit.x + count * kTileRows;
      M nonzero{};
      for (int64_t v = 0; Loss::kHinge && v < visit.rows.vectors(); ++v) {
        const V g = load(from + v * L);
        nonzero = nonzero | (g != T(0));
        store(to + v * L, g);
      }
      if (!Loss::kHinge || any(nonzero)) touched[count++] = j;
    }
    return count;
  }

  // The gradients of the close pairs among vector v of the rows and column j; apart, since they are rare.
  __attribute__((noinline)) static void add_differences(const Visit<T>& visit, int64_t v, int64_t j, M close, V pull,
                                                        Gradient& rows, Gradient& columns) {
    const Panel<T>& row = visit.rows.panel;
    for (int64_t i = v * L; i < smaller((v + 1) * L, visit.rows.count); ++i)
      if (close[i - v * L])
        add_difference(pull[i - v * L], row.values + i * row.stride, visit.columns.values + j * row.stride, row.width,
                       rows ? rows.values(visit.row_slot, i) : nullptr,
                       columns ? columns.values(visit.column_slot, j) : nullptr);
  }

  template <class Same>
  V pair_gradient(const Visit<T>& visit, V x, Same same, const RowInfo& row, PositivesTable<T>& positives, int64_t v,
                  int64_t j) const {
    if constexpr (Loss::kUsesPositives) {
      const int64_t block = table_of(visit);
      return loss_.grad(x, same, row.pos_weight, positives.of(block, block, v),
                        positives.ordinal(visit.columns.ids[j]));
    } else {
      return loss_.grad(x, same, row.saved, row.pos_weight, row.neg_weight);
    }
  }

  // gradient_coefficients() for groups.
  void group_coefficients(const Visit<T>& visit, const T* info) const {
    for_classes(visit,
                [&](int64_t v, const auto& same) { group_vector_coefficients(visit, v, same, row_info(info, v)); });
  }

  template <class Same>
  __attribute__((noinline)) void group_vector_coefficients(const Visit<T>& visit, int64_t v, const Same& same,
                                                           const RowInfo& row) const {
    for (int64_t j = 0; j < visit.columns.count; j += members()) {
      T* cell = visit.x + j * kTileRows + v * L;
      if (members() == 1) {
        V g = loss_.grad(load(cell), same(j), row.saved, row.pos_weight, row.neg_weight);
        if constexpr (std::is_same_v<Same, SameClass>)
          if (p_.exclude_diagonal) g = select(itself(visit, j, v), V{}, g);
        store(cell, g);
        continue;
      }
      const auto group = loss_.template group<V>(Members{cell, members()});
      const V g = loss_.grad(group.value, same(j), row.saved, row.pos_weight, row.neg_weight);
      for (int64_t k = 0; k < members(); ++k) {
        T* member = cell + k * kTileRows;
        store(member, g * loss_.member_grad(group, load(member), k));
      }
    }
  }

  void gradient_tile(const Visit<T>& visit, const T* info, PositivesTable<T>& positives, Gradient& rows,
                     Gradient& columns) {
    multiply_tile(visit.rows, visit.columns, p_.dim, visit.x, visit.next);
    if constexpr (Loss::kGrouped)
      group_coefficients(visit, info);
    else
      gradient_coefficients(visit, info, positives, rows, columns);
    int64_t touched[kTileColumns];
    const int64_t count = pack_touched(visit, touched);
    if (columns)
      add_rows_to_columns(visit.x, visit.rows, touched, count, columns.values(visit.column_slot, 0), sweep_.stride(),
                          visit.output);
    if (rows)
      add_columns_to_rows(visit.x, visit.columns, touched, count, rows.values(visit.row_slot, 0), visit.rows.count,
                          visit.output);
  }
};

}  // namespace
}  // namespace CCP_CAPABILITY
}  // namespace ccp
