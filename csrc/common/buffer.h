// Uninitialised scratch memory on cache-line boundaries. Not std::vector: its members would be compiled once per
// instruction set under one name (see common/macros.h).
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
      : data_(static_cast<T*>(::operator new(sizeof(T) * size_t(count > 0 ? count : 1), kAlignment))) {}
  Buffer(Buffer&& other) : data_(other.data_) { other.data_ = nullptr; }
  Buffer& operator=(Buffer&&) = delete;
  ~Buffer() { ::operator delete(data_, kAlignment); }

  operator T*() { return data_; }
  operator const T*() const { return data_; }

 private:
  static constexpr std::align_val_t kAlignment{64};
  T* data_;
};

}  // namespace CCP_CAPABILITY
}  // namespace ccp
