// The k nearest seen so far of many rows. A row has room for some more than k; newcomers below its bound, the k-th
// distance when last looked at, are appended, and when the room is full the k nearest are selected and the bound falls.
#pragma once

#include "kernels/cpu/sweep.h"

namespace ccp {
namespace CCP_CAPABILITY {

// Neighbours of one row are distinct: each has another index.
template <class T>
struct Neighbor {
  T squared;
  Integer<T> index;
};

template <class T>
CCP_HD bool is_nearer(const Neighbor<T>& a, const Neighbor<T>& b) {
  return (a.squared < b.squared) | ((a.squared == b.squared) & (a.index < b.index));
}

template <class T>
CCP_HD void swap(Neighbor<T>& a, Neighbor<T>& b) {
  const Neighbor<T> old = a;
  a = b;
  b = old;
}

// Moves what is nearer than one of the n > 0 neighbours before it; returns where that one is now. No branch depends on
// the values: they would be mispredicted half the time.
template <class T>
inline int64_t partition(Neighbor<T>* list, int64_t n) {
  Neighbor<T>&first = list[0], &middle = list[n / 2], &last = list[n - 1];
  if (is_nearer(middle, first)) swap(middle, first);
  if (is_nearer(last, first)) swap(last, first);
  if (is_nearer(middle, last)) swap(middle, last);  // the median of the three comes last
  const Neighbor<T> pivot = last;
  int64_t nearer = 0;
  for (int64_t i = 0; i < n - 1; ++i) {
    const Neighbor<T> x = list[i];
    list[i] = list[nearer];
    list[nearer] = x;
    nearer += is_nearer(x, pivot);
  }
  swap(list[nearer], last);
  return nearer;
}

// Moves the k nearest of n >= k > 0 neighbours to the front, the k-th of them to its own place.
template <class T>
inline void select_nearest(Neighbor<T>* list, int64_t n, int64_t k) {
  while (n > 1) {
    const int64_t place = partition(list, n);
    if (place == k - 1) return;
    if (place > k - 1) {
      n = place;
    } else {
      list += place + 1;
      n -= place + 1;
      k -= place + 1;
    }
  }
}

template <class T>
inline void sort_neighbors(Neighbor<T>* list, int64_t n) {
  constexpr int64_t kFew = 16;
  while (n > kFew) {  // recurses into the shorter part only
    const int64_t place = partition(list, n), after = n - place - 1;
    if (place < after) {
      sort_neighbors(list, place);
      list += place + 1;
      n = after;
    } else {
      sort_neighbors(list + place + 1, after);
      n = place;
    }
  }
  for (int64_t i = 1; i < n; ++i)
    for (int64_t j = i; j > 0 && is_nearer(list[j], list[j - 1]); --j) swap(list[j], list[j - 1]);
}

template <class T>
class NearestLists {
 public:
  NearestLists(int64_t rows, int64_t k)
      : k_(k), room_(k + larger(k, 16)), neighbors_(rows * room_), counts_(rows), bounds_(rows) {}

  // The lists of `rows` rows from `row` on become empty; the last `padding` of them stay so.
  void clear(int64_t row, int64_t rows, int64_t padding) {
    for (int64_t i = 0; i < rows; ++i) {
      counts_[row + i] = 0;
      bounds_[row + i] = i < rows - padding ? infinity() : -infinity();
    }
  }

  // [rows from `row` on]
  const T* bounds(int64_t row) const { return bounds_ + row; }

  // Takes a neighbour. Where they come by ascending index, those below the row's bound are enough: one at it is too
  // late.
  void take(int64_t row, const Neighbor<T>& neighbor) {
    Neighbor<T>* list = neighbors_ + row * room_;
    list[counts_[row]++] = neighbor;
    if (counts_[row] == room_) keep_nearest(row);
  }

  // Adds what list `other` has found among references of higher indices. Selecting has put these out of order, so one
  // at the bound may go before one of them that was taken.
  void merge(int64_t row, int64_t other) {
    for (int64_t i = 0; i < counts_[other]; ++i) {
      const Neighbor<T>& neighbor = neighbors_[other * room_ + i];
      if (neighbor.squared <= bounds_[row]) take(row, neighbor);
    }
  }

  // The row's neighbours, the nearest first, and how many: at most k.
  const Neighbor<T>* sorted(int64_t row, int64_t* count) {
    if (counts_[row] > k_) keep_nearest(row);
    *count = counts_[row];
    sort_neighbors(neighbors_ + row * room_, *count);
    return neighbors_ + row * room_;
  }

 private:
  static constexpr T infinity() { return T(__builtin_inf()); }

  void keep_nearest(int64_t row) {
    Neighbor<T>* list = neighbors_ + row * room_;
    select_nearest(list, counts_[row], k_);
    counts_[row] = k_;
    bounds_[row] = list[k_ - 1].squared;
  }

  const int64_t k_, room_;
  Buffer<Neighbor<T>> neighbors_;  // [rows, room]
  Buffer<int64_t> counts_;
  Buffer<T> bounds_;
};

}  // namespace CCP_CAPABILITY
}  // namespace ccp
