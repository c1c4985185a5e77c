// Scratch memory for a launcher: full of poison, so that a kernel that counts on zeros in it shows it, and between
// guards.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <vector>

namespace ccp {
namespace emu {

class GuardedScratch {
 public:
  explicit GuardedScratch(size_t bytes, unsigned char poison = 0xff)
      : memory_(bytes + 2 * kGuard + 256, kGuarded), bytes_(bytes) {
    begin_ = memory_.data() + kGuard;
    begin_ += (256 - reinterpret_cast<uintptr_t>(begin_) % 256) % 256;
    std::memset(begin_, poison, bytes);
  }

  void* data() { return begin_; }

  // Throws std::runtime_error if the guards are not as they were.
  void check() const {
    for (const unsigned char& byte : memory_)
      if ((&byte < begin_ || &byte >= begin_ + bytes_) && byte != kGuarded)
        throw std::runtime_error("something was written outside the workspace");
  }

 private:
  static constexpr size_t kGuard = 4096;
  static constexpr unsigned char kGuarded = 0xa5;
  std::vector<unsigned char> memory_;
  unsigned char* begin_;
  size_t bytes_;
};

}  // namespace emu
}  // namespace ccp
