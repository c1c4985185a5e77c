// One-sentence errors: name the argument, what was expected, what came.
#pragma once

#include <sstream>
#include <stdexcept>

namespace ccp {

template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

}  // namespace ccp

#define CCP_CHECK(condition, ...)               \
  do {                                          \
    if (!(condition)) ::ccp::fail(__VA_ARGS__); \
  } while (false)
