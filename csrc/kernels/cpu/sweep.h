// Visits every tile of the rows × columns matrix once, in parallel.
//
// The longer side (proxies, usually) is streamed: cut into slices that threads take, each slice into tiles, each tile
// loaded once and met with every tile of the shorter, resident side. The cut depends on the shapes alone, and what a
// slice gathers goes to accumulators of its own, which are merged in order afterwards: results have the same bits for
// any number of threads. Accumulators are numbered by slots: a resident block has one slot per slice, a streamed block
// uses its slice's slot while its turn lasts.
#pragma once

#include "kernels/cpu/tile.h"

namespace ccp {
namespace CCP_CAPABILITY {

constexpr int64_t kMostSlices = 16;

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// Full blocks of a product of this size, in each of which a Prefetch takes a step.
constexpr int64_t prefetch_steps(int64_t rows, int64_t vectors) {
  return larger(1, rows / kRegisterRows) * larger(1, vectors / kRegisterVectors);
}

template <class T>
struct Visit {
  RowBlock<T> rows;
  int64_t row_slot;
  Panel<T> columns;
  int64_t column_slot;
  T* x;              // [kTileColumns, kTileRows], to be filled by multiply_tile
  Prefetch* next;    // the streamed tile that follows, for multiply_tile to fetch
  Prefetch* output;  // where this streamed tile's gradient will go, for the other products
};

template <class T>
class Sweep {
 public:
  // With whole_groups no group of columns lies in two tiles.
  Sweep(const SimilarityProblem& problem, bool stream_columns, bool whole_groups)
      : p_(problem),
        stream_columns_(stream_columns),
        tile_columns_(whole_groups ? kTileColumns / problem.columns.group * problem.columns.group : kTileColumns),
        width_(ceil_div(larger(problem.dim, 1), kLanes<T>) * kLanes<T>),
        stride_(spread_stride<T>(width_)),
        resident_(resident_tiles() * kTileRows, stride_, width_),
        transposed_(stream_columns ? ceil_div(problem.rows.count, kTileRows) * kTileRows * problem.dim : 0) {
    static_assert(kTileRows == kTileColumns, "one panel size for both sides");
    p_.parallel_for(resident_tiles(), [&](int64_t t) {
      const int64_t size = resident_tile(), begin = t * size, n = smaller(size, resident_side().count - begin);
      load_panel(resident_side(), p_.dim, p_.normalize, nullptr, begin, n, size, resident_.panel().from(begin, size));
      if (stream_columns_) transpose_rows(resident_rows(t), p_.dim);
    });
  }

  bool streams_columns() const { return stream_columns_; }
  int64_t width() const { return width_; }
  int64_t stride() const { return stride_; }
  int64_t resident_tiles() const { return ceil_div(resident_side().count, resident_tile()); }
  const EmbeddingSide& streamed_side() const { return stream_columns_ ? p_.columns : p_.rows; }
  const EmbeddingSide& resident_side() const { return stream_columns_ ? p_.rows : p_.columns; }

  // More slices than threads; accumulators, one of the resident side for each, take four times the streamed side at
  // most (or two of the resident side).
  int64_t slices(int64_t streamed) const {
    const int64_t by_memory = larger(2, 4 * streamed / larger(1, resident_side().count));
    return larger(1, smaller(smaller(kMostSlices, by_memory), ceil_div(streamed, streamed_tile())));
  }

  RowBlock<T> resident_rows(int64_t tile) const {
    const int64_t begin = tile * kTileRows;
    T* transposed = const_cast<T*>(static_cast<const T*>(transposed_)) + begin * p_.dim;
    return {resident_.panel().from(begin, kTileRows), transposed, smaller(kTileRows, p_.rows.count - begin)};
  }
  Panel<T> resident_columns(int64_t tile) const {
    const int64_t begin = tile * tile_columns_;
    return resident_.panel().from(begin, smaller(tile_columns_, p_.columns.count - begin));
  }

  // Streams items chosen[0..count) (nullptr: all). begin(streamed tile, slice) comes before a streamed tile's visits,
  // end(streamed tile, slice) after them. `output`, shaped like the streamed side, is where `end` writes: it is
  // prefetched, unless nullptr. The streamed tile is a RowBlock or a Panel.
  template <class Begin, class Tile, class End>
  void run(const int64_t* chosen, int64_t count, const void* output, const Begin& begin, const Tile& tile,
           const End& end) const {
    const int64_t slices = this->slices(count), tiles = ceil_div(count, streamed_tile());
    p_.parallel_for(slices, [&](int64_t slice) {
      PanelStorage<T> storage(kTileRows, stride_, width_);
      Buffer<T> transposed(stream_columns_ ? 0 : kTileRows * p_.dim);
      Buffer<T> x(kTileRows * kTileColumns);
      for (int64_t t = tiles * slice / slices; t < tiles * (slice + 1) / slices; ++t) {
        const int64_t first = t * streamed_tile(), n = smaller(streamed_tile(), count - first);
        load_panel(streamed_side(), p_.dim, p_.normalize, chosen, first, n, kTileRows, storage.panel());
        // What is next in memory need not be what comes next, where items are chosen.
        const int64_t item = p_.dim * dtype_bytes(streamed_side().dtype), after = first + n;
        const int64_t visits = larger(1, resident_tiles());
        const int64_t steps = visits * prefetch_steps(kTileColumns, kTileRows / kLanes<T>);
        const int64_t output_steps = visits * 2 * prefetch_steps(kTileColumns, width_ / kLanes<T>);
        Prefetch next, writes;
        if (!chosen) {
          next = Prefetch(static_cast<const char*>(streamed_side().data) + after * item,
                          smaller(streamed_tile(), count - after) * item, steps);
          if (output) writes = Prefetch(static_cast<const char*>(output) + first * item, n * item, output_steps);
        }
        const RowBlock<T> block{storage.panel(), transposed, n};
        if (!stream_columns_) transpose_rows(block, p_.dim);
        const Panel<T> panel = storage.panel().from(0, n);
        begin(block, slice);
        for (int64_t r = 0; r < resident_tiles(); ++r) {
          const int64_t resident_slot = slice * resident_tiles() + r;
          if (stream_columns_)
            tile(Visit<T>{resident_rows(r), resident_slot, panel, slice, x, &next, &writes});
          else
            tile(Visit<T>{block, slice, resident_columns(r), resident_slot, x, &next, &writes});
        }
        end(panel, slice);
      }
    });
  }

 private:
  // Items of a tile of either side.
  int64_t streamed_tile() const { return stream_columns_ ? tile_columns_ : kTileRows; }
  int64_t resident_tile() const { return stream_columns_ ? kTileRows : tile_columns_; }

  const SimilarityProblem& p_;
  const bool stream_columns_;
  const int64_t tile_columns_;
  const int64_t width_, stride_;
  PanelStorage<T> resident_;
  Buffer<T> transposed_;
};

}  // namespace CCP_CAPABILITY
}  // namespace ccp
