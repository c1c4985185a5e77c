// Shims over LibTorch's stable ABI, each with the torch release that lets it go.
#pragma once

#include <torch/csrc/stable/library.h>

#include <string>

namespace ccp {

// A `str` argument of an op. torch 2.11 to 2.13 leak one std::string for every such argument of every call
// (ToImpl<std::string> in stableivalue_conversions.h returns a copy of a `new std::string`); this type is unboxed
// without. Goes when the oldest supported torch has it mended; python_tests/test_memory.py watches.
struct OpString {
  std::string text;
  operator const std::string&() const { return text; }
};

}  // namespace ccp

template <>
struct torch::stable::detail::ToImpl<ccp::OpString> {
  static ccp::OpString call(StableIValue value, uint64_t, bool) {
    const StringHandle handle = torch::stable::detail::to<StringHandle>(value);
    size_t length = 0;
    const char* data = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(torch_string_length(handle, &length));
    STABLE_TORCH_ERROR_CODE_CHECK(torch_string_c_str(handle, &data));
    ccp::OpString result{std::string(data, length)};
    STABLE_TORCH_ERROR_CODE_CHECK(torch_delete_string(handle));
    return result;
  }
};
