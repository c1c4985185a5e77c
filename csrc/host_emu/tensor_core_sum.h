// What a tensor core adds up: exact products, upon a float.
#pragma once

namespace ccp {
namespace emu {

// Whether sums are cut off as on a GPU; otherwise each term is rounded to nearest.
//
// An A100 adds so, by what has been published of it (Fasi et al. 2021; Khattak & Mikaitis 2025; other GPUs keep as many
// bits or more): products come in blocks; those of a block and the sum so far are aligned to the largest of them with
// one bit more than a float has, whatever lies below is cut off, and so is the result, to a float.
extern bool sums_are_cut_off;

class TensorCoreSum {
 public:
  TensorCoreSum(float begin, int block) : sum_(begin), block_(block) {}
  void add(float left, float right) {
    if (sums_are_cut_off)
      add_to_block(double(left) * double(right));
    else
      sum_ += left * right;
  }
  float value() const { return sum_; }  // after whole blocks

 private:
  static constexpr int kMostTerms = 16;
  void add_to_block(double product);

  float sum_;
  int block_, count_ = 0;
  double terms_[kMostTerms];
};

}  // namespace emu
}  // namespace ccp
