#include "kernels/cpu/centre_spread.h"

#include "kernels/cpu/tile.h"

namespace ccp {
namespace CCP_CAPABILITY {
namespace {

constexpr int64_t kClassesAtOnce = 64;  // a thread's part; fixes the order of summation

template <class T>
class Spread {
  static constexpr int L = kLanes<T>;

 public:
  explicit Spread(const CentreSpreadProblem& problem)
      : p_(problem),
        size_(problem.centres.group),
        classes_(size_ > 0 ? problem.centres.count / size_ : 0),
        stride_((problem.dim + L - 1) / L * L),
        parts_((classes_ + kClassesAtOnce - 1) / kClassesAtOnce) {}

  double value() const {
    Buffer<double> sums(parts_);
    for_each_class([&](int64_t part) { sums[part] = 0; },
                   [&](int64_t part, const Panel<T>& panel, T*) {
                     for (int64_t k = 1; k < size_; ++k)
                       for (int64_t other = 0; other < k; ++other) sums[part] += distance(panel, k, other);
                   });
    double total = 0;
    for (int64_t part = 0; part < parts_; ++part) total += sums[part];
    return total / centre_pairs(classes_, size_);
  }

  void gradient(double grad, void* out) const {
    const double weight = grad / centre_pairs(classes_, size_);
    for_each_class([](int64_t) {},
                   [&](int64_t, const Panel<T>& panel, T* g) {
                     memset(g, 0, sizeof(T) * size_t(size_ * stride_));
                     for (int64_t k = 1; k < size_; ++k)
                       for (int64_t other = 0; other < k; ++other) pull(panel, k, other, weight, g);
                     for (int64_t k = 0; k < size_; ++k)
                       store_gradient(g + k * stride_, T(0), panel, k, Normalize::kUnit, p_.dim, out, p_.centres.dtype);
                   });
  }

 private:
  // begin(part), then visit(part, the class's centres, scratch like them) for each of the part's classes.
  template <class Begin, class Visit>
  void for_each_class(const Begin& begin, const Visit& visit) const {
    p_.parallel_for(parts_, [&](int64_t part) {
      PanelStorage<T> centres(size_, stride_);
      Buffer<T> scratch(size_ * stride_);
      begin(part);
      for (int64_t c = part * kClassesAtOnce; c < classes_ && c < (part + 1) * kClassesAtOnce; ++c) {
        load_panel(p_.centres, p_.dim, Normalize::kUnit, nullptr, c * size_, size_, size_, centres.panel());
        visit(part, centres.panel(), static_cast<T*>(scratch));
      }
    });
  }

  double distance(const Panel<T>& panel, int64_t a, int64_t b) const {
    return ::sqrt(squared_distance(panel.values + a * stride_, panel.values + b * stride_, stride_));
  }

  // d‖a - b‖/da = (a - b)/‖a - b‖
  void pull(const Panel<T>& panel, int64_t a, int64_t b, double weight, T* g) const {
    const double d = distance(panel, a, b);
    if (d == 0) return;
    const T slope = T(weight / d);
    T *ga = g + a * stride_, *gb = g + b * stride_;
    for (int64_t i = 0; i < stride_; i += L) {
      const Vec<T> step = (load(panel.values + a * stride_ + i) - load(panel.values + b * stride_ + i)) * slope;
      store(ga + i, load(ga + i) + step);
      store(gb + i, load(gb + i) - step);
    }
  }

  const CentreSpreadProblem& p_;
  const int64_t size_, classes_, stride_, parts_;
};

}  // namespace

double centre_spread(const CentreSpreadProblem& problem) {
  return problem.centres.dtype == Dtype::kFloat64 ? Spread<double>(problem).value() : Spread<float>(problem).value();
}

void centre_spread_backward(const CentreSpreadProblem& problem, double grad, void* gradient) {
  if (problem.centres.dtype == Dtype::kFloat64)
    Spread<double>(problem).gradient(grad, gradient);
  else
    Spread<float>(problem).gradient(grad, gradient);
}

}  // namespace CCP_CAPABILITY
}  // namespace ccp
