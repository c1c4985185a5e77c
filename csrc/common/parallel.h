// How a torch-free kernel reaches the caller's thread pool: body(i) for every i in [0, n), each i exactly once.
// What a body computes must not depend on which thread runs it or when; that keeps results equal bit by bit for any
// number of threads. A body must not throw.
#pragma once

#include <cstdint>

namespace ccp {

struct ParallelFor {
  void (*run)(int64_t n, void (*body)(int64_t i, void* context), void* context);

  template <class F>
  void operator()(int64_t n, const F& f) const {
    run(n, [](int64_t i, void* context) { (*static_cast<const F*>(context))(i); }, const_cast<F*>(&f));
  }
};

}  // namespace ccp
