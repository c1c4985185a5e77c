#include "host_emu/tensor_core_sum.h"

#include <algorithm>
#include <cmath>

namespace ccp {
namespace emu {

bool sums_are_cut_off = false;

void TensorCoreSum::add_to_block(double product) {
  terms_[count_++] = product;
  if (count_ < block_) return;
  double largest = std::fabs(sum_), plain = sum_;
  for (int i = 0; i < count_; ++i) largest = std::max(largest, std::fabs(terms_[i])), plain += terms_[i];
  if (!std::isfinite(plain) || largest == 0) {
    sum_ = float(plain);
  } else {
    constexpr int kBits = 24;  // below the largest one's first: a float's 23 and another
    const double unit = std::ldexp(1.0, std::ilogb(largest) - kBits);
    double units = std::trunc(sum_ / unit);
    for (int i = 0; i < count_; ++i) units += std::trunc(terms_[i] / unit);
    const double exact = units * unit;
    sum_ = float(exact);
    if (std::fabs(double(sum_)) > std::fabs(exact)) sum_ = std::nextafter(sum_, 0.0f);
  }
  count_ = 0;
}

}  // namespace emu
}  // namespace ccp
