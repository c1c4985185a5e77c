// Uninitialised scratch memory on cache-line boundaries. Not std::vector: its members would be compiled once per
// instruction set under one name (see common/macros.h). The pointer is aligned by hand, since glibc's aligned
// allocation leaves fragments behind that it does not use again.
#pragma once

#include <cstdint>
#include <new>

#include "common/macros.h"

namespace ccp {
namespace CCP_CAPABILITY {

template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t count)
      : allocation_(::operator new(sizeof(T) * size_t(count > 0 ? count : 1) + kAlignment)),
        data_(reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(allocation_) + kAlignment - 1) & ~(kAlignment - 1))) {}
  Buffer(Buffer&& other) : allocation_(other.allocation_), data_(other.data_) { other.allocation_ = nullptr; }
  Buffer& operator=(Buffer&&) = delete;
  ~Buffer() { ::operator delete(allocation_); }

  operator T*() { return data_; }
  operator const T*() const { return data_; }

 private:
  static constexpr uintptr_t kAlignment = 64;
  void* allocation_;
  T* data_;
};

}  // namespace CCP_CAPABILITY
}  // namespace ccp
