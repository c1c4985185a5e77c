// torch's names as the bindings hear them.
#pragma once

#include <initializer_list>
#include <stdexcept>
#include <string>
#include <utility>

#include "common/dtype.h"
#include "common/normalize.h"

namespace ccp {
namespace emu {

template <class T>
T by_name(const std::string& name, std::initializer_list<std::pair<const char*, T>> known) {
  for (const auto& [known_name, value] : known)
    if (name == known_name) return value;
  throw std::invalid_argument("unknown name: " + name);
}

inline Dtype dtype_named(const std::string& name) {
  return by_name<Dtype>(name, {{"float32", Dtype::kFloat32},
                               {"float64", Dtype::kFloat64},
                               {"bfloat16", Dtype::kBFloat16},
                               {"float16", Dtype::kFloat16}});
}

inline Normalize normalize_named(const std::string& name) {
  return by_name<Normalize>(name, {{"none", Normalize::kNone}, {"unit", Normalize::kUnit}, {"ball", Normalize::kBall}});
}

}  // namespace emu
}  // namespace ccp
