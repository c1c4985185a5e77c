// What a similarity loss is, for every driver (CPU loop, CUDA kernel, emulator, class-sharded loss).
//
// A loss is a reduction over pairs (row i, column j) of x_ij, a similarity or distance, with the flag same_ij. It is
// one struct, templated on the number type T, whose methods are templated on V: a plain number on a GPU thread, a
// vector of rows on the CPU.
//
//   static constexpr Metric kMetric;        // what x_ij is
//   static constexpr bool kHinge;           // many pairs have a gradient of exactly zero: worth remembering which
//   static constexpr bool kUsesPositives;   // reads the distances to the row's positives first (see Positives)
//   static constexpr bool kGrouped;         // the K columns of a class count as one, see below
//   explicit Loss(const double* parameters);
//   template <class V> struct State;        // what a row has gathered; only members of type V
//   init(State&)                            // nothing gathered yet
//   update(State&, x, same) -> mask         // take one pair; the mask tells which lanes may have a gradient. `same`
//                                           // is a mask, too, or NoLanes where that is known beforehand (see simd.h)
//   template <class V> struct Maxima;       // optional, see below
//   merge(State&, const State&)             // associative: columns may be split over threads, blocks and ranks
//   finalize(State<T>, columns, saved[kSaved]) -> RowParts    // the row's loss, and what grad() needs of it
//   grad(x, same, saved, pos_weight, neg_weight) -> V         // d loss / d x_ij
//
// A log-sum-exp pays for a maximum that rises with another exp and a branch that is hard to predict. Losses that have
// one say what its Maxima are: init() and update() take them in place of a State, and gather the largest terms and
// nothing else; start(State&, const Maxima&) makes a state of them that has gathered nothing yet, and in which no
// maximum rises. A driver that has many pairs at hand goes over them twice. PosNegLse has all of this.
//
// With kUsesPositives, three methods get the row's positives, an object like Positives below, and forward is followed
// by a pass that counts, for each positive, the pairs with a negative in which it is active:
//
//   update(State&, x, same, positives) -> mask
//   count_active(x, same, positives)
//   grad(x, same, weight, positives, ordinal) -> V    // ordinal: which of the positives the column is, if it is one
//
// With kGrouped, x in the above is what a group of columns makes of its own x_k, a similarity, and so is d loss / d x.
// A group is the K proxies of a class; columns that are no proxies are groups of one each.
//
//   template <class V> struct Group;        // a V `value`, and what member_grad() needs besides
//   group<V>(x) -> Group<V>                 // of x(k), 0 <= k < x.count
//   member_grad(group, x_k, k) -> V         // d value / d x_k
#pragma once

#include <cstdint>

#include "common/macros.h"
#include "common/simd.h"

namespace ccp {

enum class Metric : int { kDot, kDistance, kSquaredDistance };

// Numbers per row that forward hands to backward; zero where finalize() writes none.
constexpr int kSaved = 3;

// Most members of a group. A warp has 32 columns of a tile.
constexpr int64_t kMostMembers = 32;

namespace CCP_CAPABILITY {

// A row's loss is a positive and a negative part, each with the number of terms that are not zero (active) and of all
// terms (entries). A reduction divides the sum of each part over the rows by one of the two sums of counts.
struct RowParts {
  double pos, neg;
  double pos_active, neg_active;
  double pos_entries, neg_entries;
};

// log(Σ exp(l)) with a running maximum: one exp for each term, and a second where the maximum rises.
// The empty sum is {-largest, 0}: no infinities meet, so no NaN is made; a NaN term does make the result NaN.
template <class V, class T>
struct LogSumExp {
  V max_term, sum;

  CCP_HD void init() {
    max_term = V{} - lowest();
    sum = V{};
  }
  template <class M>
  CCP_HD void add(V term, M mask) {
    term = select(mask, term, V{} - T(__builtin_inf()));
    if (any_less(max_term, term)) {
      const V higher = max(term, max_term);
      sum = sum * exp(max_term - higher);
      max_term = higher;
    }
    sum = sum + exp(term - max_term);
  }
  CCP_HD void merge(const LogSumExp& other) {
    const V higher = max(max_term, other.max_term);
    sum = sum * exp(max_term - higher) + other.sum * exp(other.max_term - higher);
    max_term = higher;
  }
  // Plain numbers only. -inf for the empty sum.
  CCP_HD double log() const { return double(max_term) + ::log(double(sum)); }
  CCP_HD bool empty() const { return sum == V{}; }

  CCP_HD static T lowest() { return sizeof(T) == 4 ? T(3.4028234e38f) : T(1.7976931348623157e308); }
};

// The largest term of a LogSumExp to be. A NaN is none: it will be met in the sum.
template <class V, class T>
struct LargestTerm {
  V max_term;

  CCP_HD void init() { max_term = V{} - LogSumExp<V, T>::lowest(); }
  template <class M>
  CCP_HD void add(V term, M mask) {
    max_term = max(select(mask, term, max_term), max_term);
  }
  CCP_HD LogSumExp<V, T> start() const { return {max_term, V{}}; }
};

// log(1 + e^x) without overflow.
CCP_HD double softplus(double x) { return (x > 0 ? x : 0) + ::log1p(::exp(x > 0 ? -x : x)); }

// A row's positives, as a loss sees them: distance(o) to the o-th column of the row's class (-inf where there is none),
// the largest of them, and for each the number of pairs in which it is active, which grad() needs.
template <class V>
struct Positives {
  int64_t count;
  const V* distances;  // [count] per group of rows that share a V
  V* counters;         // [count]
  V farthest;

  CCP_HD V distance(int64_t o) const { return distances[o]; }
  CCP_HD V active(int64_t o) const { return counters[o]; }
  template <class M>
  CCP_HD void count_active(int64_t o, M violated) const {
    counters[o] = counters[o] + select(violated, V{} + 1.0f, V{});
  }
};

}  // namespace CCP_CAPABILITY
}  // namespace ccp
