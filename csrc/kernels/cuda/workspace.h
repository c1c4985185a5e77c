// Scratch memory cut into arrays. Without memory it only counts, so that the size and the layout come from one place.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ccp {
namespace cuda {

class Workspace {
 public:
  explicit Workspace(void* memory) : memory_(static_cast<unsigned char*>(memory)) {}

  template <class T>
  T* take(int64_t count) {
    const size_t begin = bytes_;
    bytes_ += (sizeof(T) * size_t(count) + 255) / 256 * 256;
    return memory_ ? reinterpret_cast<T*>(memory_ + begin) : nullptr;
  }
  size_t bytes() const { return bytes_; }

 private:
  unsigned char* memory_;
  size_t bytes_ = 0;
};

}  // namespace cuda
}  // namespace ccp
