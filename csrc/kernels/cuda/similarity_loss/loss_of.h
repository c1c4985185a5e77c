// The struct of a loss by its id, a line of losses/registry.h.
#pragma once

#include "losses/registry.h"

namespace ccp {
namespace cuda {

template <LossId id>
struct LossOf;
#define CCP_STRIP(...) __VA_ARGS__
#define CCP_LOSS_OF(name, parameters, ...)         \
  template <>                                      \
  struct LossOf<LossId::k_##name> {                \
    template <class T>                             \
    using Struct = generic::CCP_STRIP __VA_ARGS__; \
    using type = Struct<float>;                    \
  };
CCP_FOR_EACH_LOSS(CCP_LOSS_OF)
#undef CCP_LOSS_OF
#undef CCP_STRIP

}  // namespace cuda
}  // namespace ccp
