// The CPU driver of all similarity losses: forward gathers row states over the tiles of a sweep, backward computes each
// tile again and turns it into gradients of both sides. Extra memory is O(rows + columns); no tile outlives its visit.
#include "kernels/cpu/similarity_loss.h"

#include <type_traits>

#include "kernels/cpu/positives.h"

namespace ccp {
namespace CCP_CAPABILITY {
namespace {

template <class T, class Loss>
class Driver {
  static constexpr int L = kLanes<T>;
  static constexpr int64_t kVectors = kTileRows / L;  // per row block
  using V = Vec<T>;
  using M = Mask<T>;
  using State = typename Loss::template State<V>;
  using RowState = typename Loss::template State<T>;
  static_assert(!Loss::kGrouped || (Loss::kMetric == Metric::kDot && !Loss::kHinge && !Loss::kUsesPositives),
                "a group is of similarities, and always whole");

  // What grad() needs of each row of a block: the saved numbers, then the weights of the positive and negative part.
  static constexpr int64_t kRowInfo = kSaved + 2;

 public:
  explicit Driver(const SimilarityProblem& problem)
      : p_(problem), loss_(problem.parameters), sweep_(problem, streams_columns(problem), Loss::kGrouped) {}

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

  void backward(const SimilarityBackward& out) {
    // Where a hinge is inactive for a whole item of the longer side, its gradient is exactly zero: leave it out.
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

  // The pairs of a vector of rows with the columns of one group.
  struct Members {
    const T* cell;
    int64_t count;
    V operator()(int64_t k) const { return load(cell + k * kTileRows); }
  };
  // Columns that count as one.
  int64_t members() const { return Loss::kGrouped ? p_.columns.group : 1; }

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

  // The same for groups.
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

  const SimilarityProblem& p_;
  const Loss loss_;
  const Sweep<T> sweep_;
};

template <class T>
struct Type {
  using type = T;
};

// run(Type<the driver of this loss and number type>)
template <class Run>
void dispatch(LossId loss, bool use_double, const Run& run) {
  switch (loss) {
#define CCP_DRIVE(name, parameters, ...)             \
  case LossId::k_##name:                             \
    if (use_double) {                                \
      using T = double;                              \
      run(Type<Driver<T, CCP_STRIP __VA_ARGS__>>()); \
    } else {                                         \
      using T = float;                               \
      run(Type<Driver<T, CCP_STRIP __VA_ARGS__>>()); \
    }                                                \
    return;
#define CCP_STRIP(...) __VA_ARGS__
    CCP_FOR_EACH_LOSS(CCP_DRIVE)
#undef CCP_STRIP
#undef CCP_DRIVE
  }
}

}  // namespace

void similarity_loss_forward(const SimilarityProblem& problem, const SimilarityForward& out) {
  dispatch(problem.loss, problem.use_double,
           [&](auto driver) { typename decltype(driver)::type(problem).forward(out); });
}
void similarity_loss_finish(const SimilarityFinish& job) {
  dispatch(job.loss, job.use_double, [&](auto driver) { decltype(driver)::type::finish(job); });
}
void similarity_loss_count(const SimilarityProblem& problem, void* out) {
  dispatch(problem.loss, problem.use_double, [&](auto driver) { typename decltype(driver)::type(problem).count(out); });
}
void similarity_loss_backward(const SimilarityProblem& problem, const SimilarityBackward& out) {
  dispatch(problem.loss, problem.use_double,
           [&](auto driver) { typename decltype(driver)::type(problem).backward(out); });
}

}  // namespace CCP_CAPABILITY
}  // namespace ccp
