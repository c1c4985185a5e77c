#include "host_emu/mbarriers.h"

#include <cstring>
#include <map>
#include <stdexcept>
#include <vector>

namespace ccp {
namespace emu {

namespace {

constexpr int kBoxBytes = 128;  // of a row
constexpr unsigned char kPoison = 0xff;

struct Box {
  unsigned char* to;
  std::vector<unsigned char> bytes;
};

struct Mbarrier {
  unsigned arrivals = 0, missing = 0;
  int64_t bytes_missing = 0;
  unsigned phase = 0;
  bool fenced = false;
  std::vector<Box> on_the_way;
};

// A block's barriers by their place in shared memory.
std::map<const void*, Mbarrier>& barriers() {
  static std::map<const void*, Mbarrier> all;
  static int64_t block = -1;
  if (block != block_number()) {
    all.clear();
    block = block_number();
  }
  return all;
}

Mbarrier& known(const void* barrier) {
  const auto found = barriers().find(barrier);
  if (found == barriers().end()) throw std::runtime_error("an mbarrier that nobody has initialised");
  return found->second;
}

void end_phase(Mbarrier& b) {
  if (b.missing > 0 || b.bytes_missing != 0) return;
  ++b.phase;
  b.missing = b.arrivals;
}

void deliver(Mbarrier& b) {
  for (const Box& box : b.on_the_way) {
    std::memcpy(box.to, box.bytes.data(), box.bytes.size());
    b.bytes_missing -= int64_t(box.bytes.size());
  }
  if (b.on_the_way.empty()) return;
  b.on_the_way.clear();
  end_phase(b);
}

}  // namespace

void mbarrier_init(uint64_t* barrier, unsigned arrivals) {
  check_shared(barrier, 8, 8, "mbarrier.init");
  Mbarrier b;
  b.arrivals = b.missing = arrivals;
  barriers()[barrier] = b;
}

void mbarrier_fence(Site site) {
  if (is_left_out(site)) return;
  for (auto& [place, b] : barriers()) b.fenced = true;
}

void mbarrier_arrive(uint64_t* barrier, unsigned bytes, Site site) {
  if (is_left_out(site)) return;
  Mbarrier& b = known(barrier);
  if (b.missing == 0) throw std::runtime_error("more arrivals at an mbarrier than it was initialised for");
  --b.missing;
  b.bytes_missing += bytes;
  end_phase(b);
}

void mbarrier_wait(uint64_t* barrier, unsigned parity, Site site) {
  wait_until(
      [=] {
        Mbarrier& b = known(barrier);
        deliver(b);
        return b.phase % 2 != parity;
      },
      site);
}

void async_box(void* shared, const TensorMap& map, int column, int row, uint64_t* barrier) {
  const size_t bytes = size_t(map.box_rows) * kBoxBytes;
  check_shared(shared, bytes, 1024, "cp.async.bulk.tensor");
  Mbarrier& b = known(barrier);
  if (!b.fenced) throw std::runtime_error("cp.async.bulk.tensor: its mbarrier was not fenced");
  Box box{static_cast<unsigned char*>(shared), std::vector<unsigned char>(bytes, 0)};
  for (int r = 0; r < map.box_rows; ++r)
    for (int c = 0; c < kBoxBytes / 2; ++c) {
      if (row + int64_t(r) < 0 || row + int64_t(r) >= map.rows) continue;
      if (column + c < 0 || column + c >= map.columns) continue;
      const uintptr_t place = reinterpret_cast<uintptr_t>(shared) + uintptr_t(r * kBoxBytes + c * 2);
      const uintptr_t swizzled = place ^ (place >> 7 & 7) << 4;  // Swizzle<3, 4, 3> of the address
      std::memcpy(&box.bytes[swizzled - reinterpret_cast<uintptr_t>(shared)],
                  map.data + ((row + int64_t(r)) * map.columns + column + c) * 2, 2);
    }
  std::memset(shared, kPoison, bytes);
  b.on_the_way.push_back(std::move(box));
}

}  // namespace emu
}  // namespace ccp
