// Every operator's C++ entry point; csrc/registration.cpp binds them to the schemas.
#pragma once

#include <string>
#include <tuple>
#include <vector>

#include "ops/tensor.h"

namespace ccp {

std::string build_info();

}  // namespace ccp
