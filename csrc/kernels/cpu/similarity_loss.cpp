// The CPU driver of all similarity losses: forward gathers row states over the tiles of a sweep, backward computes each
// tile again and turns it into gradients of both sides. Extra memory is O((rows + columns)·dim); no
// tile outlives its visit.
#include "kernels/cpu/similarity_loss.h"

#include "kernels/cpu/loss_backward.h"
#include "kernels/cpu/loss_forward.h"

namespace ccp {
namespace CCP_CAPABILITY {
namespace {

template <class T>
struct Type {
  using type = T;
};

// run(Type<Pass<number type, loss>>)
template <template <class, class> class Pass, class Run>
void dispatch(LossId loss, bool use_double, const Run& run) {
  switch (loss) {
#define CCP_DRIVE(name, parameters, ...)           \
  case LossId::k_##name:                           \
    if (use_double) {                              \
      using T = double;                            \
      run(Type<Pass<T, CCP_STRIP __VA_ARGS__>>()); \
    } else {                                       \
      using T = float;                             \
      run(Type<Pass<T, CCP_STRIP __VA_ARGS__>>()); \
    }                                              \
    return;
#define CCP_STRIP(...) __VA_ARGS__
    CCP_FOR_EACH_LOSS(CCP_DRIVE)
#undef CCP_STRIP
#undef CCP_DRIVE
  }
}

}  // namespace

void similarity_loss_forward(const SimilarityProblem& problem, const SimilarityForward& out) {
  dispatch<LossForward>(problem.loss, problem.use_double,
                        [&](auto pass) { typename decltype(pass)::type(problem).forward(out); });
}
void similarity_loss_finish(const SimilarityFinish& job) {
  dispatch<LossForward>(job.loss, job.use_double, [&](auto pass) { decltype(pass)::type::finish(job); });
}
void similarity_loss_count(const SimilarityProblem& problem, void* out) {
  dispatch<LossBackward>(problem.loss, problem.use_double,
                         [&](auto pass) { typename decltype(pass)::type(problem).count(out); });
}
void similarity_loss_backward(const SimilarityProblem& problem, const SimilarityBackward& out) {
  dispatch<LossBackward>(problem.loss, problem.use_double,
                         [&](auto pass) { typename decltype(pass)::type(problem).backward(out); });
}

}  // namespace CCP_CAPABILITY
}  // namespace ccp
