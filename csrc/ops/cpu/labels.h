// From int64 labels to what the kernels compare: int32 numbers, the same number for the same class. Labels that do not
// fit are renumbered, never truncated.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "kernels/similarity_loss.h"
#include "ops/tensor.h"

namespace ccp {

// Whether the proxies are those of all classes, or there are samples whose class's proxies are elsewhere.
enum class ProxyClasses { kAll, kSome };

// Samples against proxies [C, K, D], whose labels are implied by their order. Samples whose proxies are elsewhere share
// the number C.
inline std::vector<int32_t> labels_of_proxied_samples(const Tensor& labels, int64_t classes, ProxyClasses known) {
  const int64_t* in = static_cast<const int64_t*>(labels.const_data_ptr());
  std::vector<int32_t> out(size_t(labels.numel()));
  for (int64_t i = 0; i < labels.numel(); ++i) {
    const bool inside = in[i] >= 0 && in[i] < classes;
    CCP_CHECK(inside || known == ProxyClasses::kSome, "labels: expected values in [0, ", classes,
              "), the classes that the proxies stand for, got ", in[i], " at index ", i);
    out[size_t(i)] = int32_t(inside ? in[i] : classes);
  }
  return out;
}

// Labels of rows and columns as numbers from 0 in the order of the columns' sorted labels; rows of a class that no
// column has get numbers after those.
struct NumberedLabels {
  std::vector<int32_t> rows, columns;
  int64_t classes;
};

inline NumberedLabels number_labels(const Tensor& row_labels, const Tensor& column_labels) {
  const int64_t* row = static_cast<const int64_t*>(row_labels.const_data_ptr());
  const int64_t* column = static_cast<const int64_t*>(column_labels.const_data_ptr());
  const int64_t m = row_labels.numel(), n = column_labels.numel();
  std::vector<int64_t> distinct(row, row + m);
  distinct.insert(distinct.end(), column, column + n);
  std::sort(distinct.begin(), distinct.end());
  distinct.erase(std::unique(distinct.begin(), distinct.end()), distinct.end());
  const auto number = [&](int64_t label) {
    return int32_t(std::lower_bound(distinct.begin(), distinct.end(), label) - distinct.begin());
  };
  NumberedLabels out{std::vector<int32_t>(size_t(m)), std::vector<int32_t>(size_t(n)), int64_t(distinct.size())};
  std::transform(row, row + m, out.rows.begin(), number);
  std::transform(column, column + n, out.columns.begin(), number);
  return out;
}

// The same, without sorting, where only equality matters and all labels already fit.
inline bool cast_labels(const Tensor& labels, std::vector<int32_t>& out) {
  const int64_t* in = static_cast<const int64_t*>(labels.const_data_ptr());
  const int64_t n = labels.numel();
  int64_t low = 0, high = 0;
  for (int64_t i = 0; i < n; ++i) low = std::min(low, in[i]), high = std::max(high, in[i]);
  if (low < 0 || high > INT32_MAX) return false;  // negative numbers mark padding in the kernels
  out.assign(in, in + n);
  return true;
}

// Where each class's columns are, by counting.
struct ClassColumns {
  std::vector<int64_t> starts, members, ordinals;
  int64_t largest = 0;

  ClassColumns(const std::vector<int32_t>& columns, int64_t classes)
      : starts(size_t(classes) + 1), members(columns.size()), ordinals(columns.size()) {
    for (const int32_t c : columns) ++starts[size_t(c) + 1];
    for (size_t c = 0; c < size_t(classes); ++c) {
      largest = std::max(largest, starts[c + 1]);
      starts[c + 1] += starts[c];
    }
    std::vector<int64_t> next(starts.begin(), starts.end() - 1);
    for (size_t j = 0; j < columns.size(); ++j) {
      const size_t c = size_t(columns[j]);
      ordinals[j] = next[c] - starts[c];
      members[size_t(next[c]++)] = int64_t(j);
    }
  }
};

}  // namespace ccp
