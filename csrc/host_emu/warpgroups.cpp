#include "host_emu/warpgroups.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <deque>
#include <memory>
#include <stdexcept>
#include <vector>

#include "host_emu/tensor_core_sum.h"

namespace ccp {
namespace emu {

namespace {

constexpr int kRows = 64, kColumns = 64, kK = 16, kSums = kRows * kColumns / 128;

struct Product {
  uint64_t a, b;
  float (*number)(uint16_t);
};

// Of a thread.
struct Products {
  bool fenced = false;
  float* to = nullptr;                      // where the sums will be
  std::array<float, kSums> sums{};          // so far
  std::vector<Product> open;                // since the last commit
  std::deque<std::vector<Product>> groups;  // committed, not waited for
  bool under_way() const { return !open.empty() || !groups.empty(); }
};

int64_t side_by_side = 0;

struct Block {
  std::array<Products, 1024> threads;
  std::array<int, 8> under_way{};  // of each warpgroup: the threads whose products are
};

Block& block() {
  static std::unique_ptr<Block> now;
  static int64_t number = -1;
  if (number != block_number()) {
    now = std::make_unique<Block>();
    number = block_number();
  }
  return *now;
}

Products& mine() { return block().threads[size_t(thread_number())]; }
int& under_way_in_group() { return block().under_way[size_t(thread_number()) / 128]; }

// Element (row, k) of the matrix that a descriptor tells of: eights of rows of 128 bytes.
uint16_t element(uint64_t descriptor, int row, int k) {
  const uint64_t start = (descriptor & 0x3fff) << 4, stride = (descriptor >> 32 & 0x3fff) << 4;
  if (descriptor >> 61 != 2 || (descriptor >> 49 & 7) != 0)
    throw std::runtime_error("wgmma: a swizzle of 128 bytes without an offset is all that the emulator knows");
  const uint64_t place = start + uint64_t(row / 8) * stride + uint64_t(row % 8) * 128 + uint64_t(k) * 2;
  const uint64_t swizzled = place ^ (place >> 7 & 7) << 4;
  check_shared(shared_memory() + swizzled, 2, 2, "wgmma");
  uint16_t bits;
  __builtin_memcpy(&bits, shared_memory() + swizzled, 2);
  return bits;
}

// f(i, row, column) for the lane's numbers of D: "Register Fragments for wgmma.mma_async.m64nNk16".
template <class F>
void for_each_sum(const F& f) {
  const int warp = thread_number() / 32 % 4, g = lane() / 4, t = lane() % 4;
  for (int i = 0; i < kSums; ++i) f(i, warp * 16 + g + i / 2 % 2 * 8, i / 4 * 8 + t * 2 + i % 2);
}

// In the order of k, upon what was there.
void add_to(std::array<float, kSums>& sums, const Product& p) {
  float a[2][kK];  // of the lane's two rows
  for_each_sum([&](int i, int row, int) {
    if (i == 0 || i == 2)
      for (int k = 0; k < kK; ++k) a[i / 2][k] = p.number(element(p.a, row, k));
  });
  for_each_sum([&](int i, int, int column) {
    TensorCoreSum sum(sums[size_t(i)], kK);
    for (int k = 0; k < kK; ++k) sum.add(a[i / 2 % 2][k], p.number(element(p.b, column, k)));
    sums[size_t(i)] = sum.value();
  });
}

}  // namespace

void wgmma_fence(Site site) {
  if (is_left_out(site)) return;
  warp_barrier(site);
  mine().fenced = true;
}

void wgmma(float* d, uint64_t a, uint64_t b, float (*number)(uint16_t)) {
  Products& products = mine();
  if (!products.fenced) throw std::runtime_error("wgmma: nobody has fenced its sums");
  const auto& groups = block().under_way;
  const auto busy = std::count_if(groups.begin(), groups.end(), [](int threads) { return threads > 0; });
  side_by_side += busy - (under_way_in_group() > 0) > 0;
  if (!products.under_way()) {
    ++under_way_in_group();
    products.to = d;
    std::copy_n(d, kSums, products.sums.begin());
    std::fill_n(d, kSums, std::nanf(""));
  }
  if (products.to != d) throw std::runtime_error("wgmma: a thread has one set of sums at a time in the emulator");
  products.open.push_back({a, b, number});
}

void wgmma_commit(Site site) {
  if (is_left_out(site)) return;
  Products& products = mine();
  products.groups.push_back(std::move(products.open));
  products.open.clear();
}

void wgmma_wait(int groups_still_out, Site site) {
  if (is_left_out(site)) return;
  Products& products = mine();
  while (int(products.groups.size()) > groups_still_out) {
    for (const Product& p : products.groups.front()) add_to(products.sums, p);
    products.groups.pop_front();
  }
  if (!products.under_way() && products.to) {
    std::copy(products.sums.begin(), products.sums.end(), products.to);
    products.to = nullptr;
    products.fenced = false;
    --under_way_in_group();
  }
  warp_barrier(site);
}

int64_t products_side_by_side() { return side_by_side; }

}  // namespace emu
}  // namespace ccp
