// Forward: row states gathered over the tiles of a sweep, and what becomes of them.
#pragma once

#include "kernels/cpu/loss_pairs.h"

namespace ccp {
namespace CCP_CAPABILITY {
namespace {

template <class T, class Loss>
class LossForward : LossPairs<T, Loss> {
  using Pairs = LossPairs<T, Loss>;
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
  using typename Pairs::RowState;
  using typename Pairs::SameClass;
  using typename Pairs::State;
  using typename Pairs::V;

 public:
  explicit LossForward(const SimilarityProblem& problem) : Pairs(problem) {}

  void forward(const SimilarityForward& out) {
    const int64_t streamed = sweep_.streamed_side().count, slices = sweep_.slices(streamed);
    const int64_t tiles = sweep_.streams_columns() ? sweep_.resident_tiles() : 1;
    Buffer<State> states(slices * tiles * kVectors);
    for (int64_t i = 0; i < slices * tiles * kVectors; ++i) loss_.init(states[i]);
    PositivesTable<T> positives = make_positives(slices);
    Buffer<RowParts> totals(slices);
    for (int64_t s = 0; s < slices; ++s) totals[s] = RowParts{};
    memset(out.active, Loss::kHinge ? 0 : 1, size_t(larger(p_.rows.count, p_.columns.count)));

    sweep_.run(
        nullptr, streamed, nullptr,
        [&](const RowBlock<T>& block, int64_t slice) {
          if (sweep_.streams_columns()) return;
          for (int64_t v = 0; v < kVectors; ++v) loss_.init(states[slice * kVectors + v]);
          positives.gather(block, slice);
        },
        [&](const Visit<T>& visit) { gather_tile(visit, states + visit.row_slot * kVectors, positives, out.active); },
        [&](const Panel<T>& panel, int64_t slice) {
          if (!sweep_.streams_columns()) finish_rows(panel, panel.count, states + slice * kVectors, out, totals[slice]);
        });

    if (sweep_.streams_columns()) {
      for (int64_t b = 0; b < tiles; ++b) {
        State* merged = states + b * kVectors;
        for (int64_t s = 1; s < slices; ++s)
          for (int64_t v = 0; v < kVectors; ++v) loss_.merge(merged[v], states[(s * tiles + b) * kVectors + v]);
        const RowBlock<T> rows = sweep_.resident_rows(b);
        finish_rows(rows.panel, rows.count, merged, out, totals[0]);
      }
    }
    if (!out.only_states) reduce(totals, slices, out);
  }

  static void finish(const SimilarityFinish& job) {
    const Loss loss(job.parameters);
    const T* states = static_cast<const T*>(job.states);
    constexpr size_t members = sizeof(RowState) / sizeof(T);
    for (int64_t row = 0; row < job.rows; ++row) {
      RowState state;
      loss.init(state);
      for (int64_t part = 0; part < job.parts; ++part) {
        T numbers[members];
        for (size_t m = 0; m < members; ++m)
          numbers[m] = states[(part * int64_t(members) + int64_t(m)) * job.rows + row];
        RowState other;
        memcpy(&other, numbers, sizeof(other));
        loss.merge(state, other);
      }
      T saved[kSaved] = {};
      const RowParts parts = loss.finalize(state, job.columns, saved);
      for (int k = 0; k < kSaved; ++k) static_cast<T*>(job.row_state)[k * job.rows + row] = saved[k];
      const double numbers[6] = {parts.pos,        parts.neg,         parts.pos_active,
                                 parts.neg_active, parts.pos_entries, parts.neg_entries};
      for (int k = 0; k < 6; ++k) job.row_parts[k * job.rows + row] = numbers[k];
    }
  }

 private:
  // A vector of rows meets all columns before the next does, so that its state stays in registers.
  void gather_tile(const Visit<T>& visit, State* states, PositivesTable<T>& positives, uint8_t* active) {
    multiply_tile(visit.rows, visit.columns, p_.dim, visit.x, visit.next);
    for_classes(visit,
                [&](int64_t v, const auto& same) { gather_vector(visit, v, same, states[v], positives, active); });
  }

  // The maxima first, then the terms (see losses/loss.h). A function of its own, like the other loops over a tile's
  // pairs: so the constants of one loop find room in registers.
  template <class Same>
  __attribute__((noinline)) void gather_vector(const Visit<T>& visit, int64_t v, const Same& same, State& gathered,
                                               PositivesTable<T>& positives, uint8_t* active) {
    const Positives<V> row = positives.of(table_of(visit), visit.row_slot, v);
    const M real = load_integers<T>(visit.rows.panel.ids + v * L) >= 0;
    M row_active{};
    State state;  // of this tile alone: sums stay short, so rounding stays small
    if constexpr (has_maxima<Loss>(0)) {
      typename Loss::template Maxima<V> maxima;
      loss_.init(maxima);
      for (int64_t j = 0; j < visit.columns.count; j += members()) {
        T* cell = visit.x + j * kTileRows + v * L;
        const V x = value(visit, cell, v, j);
        if (Loss::kMetric != Metric::kDot || members() > 1) store(cell, x);
        take(maxima, visit, v, j, same, x, row);
      }
      loss_.start(state, maxima);
    } else {
      loss_.init(state);
    }
    for (int64_t j = 0; j < visit.columns.count; j += members()) {
      const T* cell = visit.x + j * kTileRows + v * L;
      const V x = has_maxima<Loss>(0) ? load(cell) : value(visit, cell, v, j);
      const M touched = take(state, visit, v, j, same, x, row);
      if constexpr (Loss::kHinge) {
        if (!any(touched)) continue;
        if (!sweep_.streams_columns())
          row_active = row_active | touched;
        else if (any(touched & real))
          active[visit.columns.ids[j]] = 1;
      }
    }
    loss_.merge(gathered, state);
    if (Loss::kHinge && !sweep_.streams_columns())
      for (int i = 0; i < L; ++i)
        if (row_active[i] & real[i]) active[visit.rows.panel.ids[v * L + i]] = 1;
  }

  // has_maxima<Loss>(0): does the loss have Maxima?
  template <class AnyLoss>
  static constexpr bool has_maxima(typename AnyLoss::template Maxima<V>*) {
    return true;
  }
  template <class AnyLoss>
  static constexpr bool has_maxima(...) {
    return false;
  }

  // One pair's part in a state (or in maxima), unless it is a sample's pair with itself.
  template <class S, class Same>
  M take(S& state, const Visit<T>& visit, int64_t v, int64_t j, const Same& same, V x, const Positives<V>& row) const {
    if constexpr (std::is_same_v<Same, SameClass>) {
      if (p_.exclude_diagonal) {
        const S before = state;
        const M touched = update(state, x, same(j), row), self = itself(visit, j, v);
        restore(state, before, self);
        return touched & ~self;
      }
    }
    return update(state, x, same(j), row);
  }

  // The x of column j, or of the group that begins there.
  V value(const Visit<T>& visit, const T* cell, int64_t v, int64_t j) const {
    if constexpr (Loss::kGrouped)
      return members() == 1 ? load(cell) : loss_.template group<V>(Members{cell, members()}).value;
    else
      return measure<Loss::kMetric>(load(cell), visit.rows, v, visit.columns, j).x;
  }

  template <class S, class Same>
  M update(S& state, V x, Same same, const Positives<V>& row) const {
    if constexpr (Loss::kUsesPositives)
      return loss_.update(state, x, same, row);
    else
      return loss_.update(state, x, same);
  }

  template <class S>
  static void restore(S& state, const S& before, M lanes) {
    constexpr size_t members = sizeof(S) / sizeof(V);
    V now[members], old[members];
    memcpy(now, &state, sizeof(S));
    memcpy(old, &before, sizeof(S));
    for (size_t i = 0; i < members; ++i) now[i] = select(lanes, old[i], now[i]);
    memcpy(&state, now, sizeof(S));
  }

  // Finishes the rows of one block and adds their parts to the total, in order; or hands their states out as they are.
  void finish_rows(const Panel<T>& panel, int64_t count, const State* states, const SimilarityForward& out,
                   RowParts& total) {
    constexpr size_t members = sizeof(State) / sizeof(V);
    static_assert(sizeof(RowState) == members * sizeof(T), "a state holds nothing but its vectors");
    T* saved = static_cast<T*>(out.row_state);
    for (int64_t i = 0; i < count; ++i) {
      T lanes[members * L], lane[members];
      memcpy(lanes, &states[i / L], sizeof(State));
      for (size_t m = 0; m < members; ++m) lane[m] = lanes[m * L + size_t(i % L)];
      const int64_t row = panel.ids[i];
      if (out.only_states) {
        for (size_t m = 0; m < members; ++m) static_cast<T*>(out.states)[int64_t(m) * p_.rows.count + row] = lane[m];
        continue;
      }
      RowState state;
      memcpy(&state, lane, sizeof(state));
      T row_saved[kSaved] = {};
      const RowParts parts = loss_.finalize(state, p_.columns.count, row_saved);
      for (int k = 0; k < kSaved; ++k) saved[k * p_.rows.count + row] = row_saved[k];
      if (out.reduction == Reduction::kNone) out.loss[row] = parts.pos + parts.neg;
      add(total, parts);
    }
  }

  static void add(RowParts& total, const RowParts& parts) {
    total.pos += parts.pos;
    total.neg += parts.neg;
    total.pos_active += parts.pos_active;
    total.neg_active += parts.neg_active;
    total.pos_entries += parts.pos_entries;
    total.neg_entries += parts.neg_entries;
  }

  void reduce(const RowParts* totals, int64_t slices, const SimilarityForward& out) {
    RowParts all{};
    for (int64_t s = 0; s < slices; ++s) add(all, totals[s]);
    double pos = 1, neg = 1;
    if (out.reduction == Reduction::kRowMean) pos = neg = double(p_.rows.count);
    if (out.reduction == Reduction::kMean) pos = all.pos_entries, neg = all.neg_entries;
    if (out.reduction == Reduction::kActiveMean) pos = all.pos_active, neg = all.neg_active;
    // No terms: the sum is zero as well, and so is the mean.
    out.normalizer[0] = pos > 0 ? pos : 1;
    out.normalizer[1] = neg > 0 ? neg : 1;
    if (out.reduction != Reduction::kNone) out.loss[0] = all.pos / out.normalizer[0] + all.neg / out.normalizer[1];
  }
};

}  // namespace
}  // namespace CCP_CAPABILITY
}  // namespace ccp
