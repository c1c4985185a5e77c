// Scratch memory for a launcher: full of poison, so that a kernel that counts on zeros in it shows it, and between
// guards. More than a machine has is only promised, and zero: of that a test lets a few blocks touch a little.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>
#include <stdexcept>

namespace ccp {
namespace emu {

class GuardedScratch {
 public:
  explicit GuardedScratch(size_t bytes, unsigned char poison = 0xff) : all_(bytes + 2 * kGuard), bytes_(bytes) {
    void* memory = mmap(nullptr, all_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    begin_ = static_cast<unsigned char*>(memory) + kGuard;
    std::memset(begin_ - kGuard, kGuarded, kGuard);
    std::memset(begin_ + bytes, kGuarded, kGuard);
    if (poison && bytes <= kMostPoisoned) std::memset(begin_, poison, bytes);
  }
  ~GuardedScratch() { munmap(begin_ - kGuard, all_); }
  GuardedScratch(const GuardedScratch&) = delete;
  GuardedScratch& operator=(const GuardedScratch&) = delete;

  void* data() { return begin_; }

  // Throws std::runtime_error if the guards are not as they were.
  void check() const {
    for (size_t i = 0; i < kGuard; ++i)
      if (begin_[i - kGuard] != kGuarded || begin_[bytes_ + i] != kGuarded)
        throw std::runtime_error("something was written outside the workspace");
  }

 private:
  static constexpr size_t kGuard = 4096;  // a page, so that what lies between is aligned
  static constexpr size_t kMostPoisoned = size_t(1) << 30;
  static constexpr unsigned char kGuarded = 0xa5;
  size_t all_, bytes_;
  unsigned char* begin_;
};

}  // namespace emu
}  // namespace ccp
