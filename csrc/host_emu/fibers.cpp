#include "host_emu/fibers.h"

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <memory>
#include <random>
#include <set>
#include <stdexcept>

namespace ccp {
namespace emu {

namespace {

constexpr size_t kStackBytes = 256 * 1024;
constexpr int kLanes = 32;
constexpr unsigned char kPoison = 0xff;  // all bits set: NaN as a float, -1 as an integer
constexpr size_t kMostExchanged = 512;   // bytes a lane may hand over at a time
constexpr size_t kGuard = 4096;          // bytes behind shared memory that nobody may write

enum class Waiting { kNot, kForBlock, kForWarp, kDone };

struct Copy {
  void* to;
  std::vector<unsigned char> bytes;
};

struct Fiber {
  ThreadInfo info;
  int index = 0;
  Waiting waiting = Waiting::kNot;
  Site site{};
  bool started = false;
  jmp_buf resume;
  ucontext_t start;
  std::unique_ptr<unsigned char[]> stack{new unsigned char[kStackBytes]};
  unsigned exchanges = 0;
  std::vector<Copy> open;                // copies since the last commit
  std::deque<std::vector<Copy>> groups;  // committed, not waited for
};

struct Warp {
  unsigned char slots[2][kLanes * kMostExchanged];
};

struct State {
  std::mt19937_64 random{0};
  std::set<std::pair<const char*, int>> seen;
  std::string left_out;

  std::vector<std::unique_ptr<Fiber>> fibers;
  std::vector<Warp> warps;
  std::vector<unsigned char> shared;
  unsigned char* shared_begin = nullptr;
  const std::function<void()>* kernel = nullptr;
  Fiber* current = nullptr;
  jmp_buf scheduler;
  ucontext_t scheduler_context;
};

State& state() {
  static State s;
  return s;
}

std::string name_of(Site site) {
  const char* slash = std::strrchr(site.file, '/');
  return std::string(slash ? slash + 1 : site.file) + ":" + std::to_string(site.line);
}

void run_kernel() {
  (*state().kernel)();
  state().current->waiting = Waiting::kDone;
  _longjmp(state().scheduler, 1);
}

// A context is only made to get onto a stack of its own; after that jumps do, which cost no system call.
void go_on(Fiber& fiber) {
  State& s = state();
  s.current = &fiber;
  fiber.waiting = Waiting::kNot;
  if (_setjmp(s.scheduler)) return;
  if (fiber.started) _longjmp(fiber.resume, 1);
  fiber.started = true;
  getcontext(&fiber.start);
  fiber.start.uc_stack.ss_sp = fiber.stack.get();
  fiber.start.uc_stack.ss_size = kStackBytes;
  fiber.start.uc_link = nullptr;
  makecontext(&fiber.start, run_kernel, 0);
  swapcontext(&s.scheduler_context, &fiber.start);
}

void wait(Waiting reason, Site site) {
  State& s = state();
  Fiber& fiber = *s.current;
  fiber.waiting = reason;
  fiber.site = site;
  if (!_setjmp(fiber.resume)) _longjmp(s.scheduler, 1);
}

bool all_wait(size_t begin, size_t end, Waiting reason) {
  const auto& fibers = state().fibers;
  bool any = false;
  for (size_t i = begin; i < end; ++i) {
    if (fibers[i]->waiting == Waiting::kDone) continue;
    if (fibers[i]->waiting != reason) return false;
    any = true;
  }
  return any;
}

void release(size_t begin, size_t end) {
  for (size_t i = begin; i < end; ++i)
    if (state().fibers[i]->waiting != Waiting::kDone) state().fibers[i]->waiting = Waiting::kNot;
}

void run_block(size_t threads) {
  State& s = state();
  std::vector<size_t> order(threads);
  for (size_t i = 0; i < threads; ++i) order[i] = i;
  for (;;) {
    std::shuffle(order.begin(), order.end(), s.random);
    bool went_on = false;
    for (const size_t i : order) {
      if (s.fibers[i]->waiting != Waiting::kNot) continue;
      go_on(*s.fibers[i]);
      went_on = true;
    }
    for (size_t begin = 0; begin < threads; begin += kLanes) {
      const size_t end = std::min(begin + kLanes, threads);
      if (all_wait(begin, end, Waiting::kForWarp)) release(begin, end);
    }
    if (all_wait(0, threads, Waiting::kForBlock)) release(0, threads);
    bool done = true, stuck = true;
    for (size_t i = 0; i < threads; ++i) {
      done = done && s.fibers[i]->waiting == Waiting::kDone;
      stuck = stuck && s.fibers[i]->waiting != Waiting::kNot;
    }
    if (done) return;
    if (stuck && !went_on) throw std::runtime_error("deadlock at " + name_of(s.fibers[order[0]]->site));
  }
}

Dim3 unflatten(size_t i, Dim3 shape) {
  return {unsigned(i % shape.x), unsigned(i / shape.x % shape.y), unsigned(i / shape.x / shape.y)};
}

bool is_left_out(Site site) {
  State& s = state();
  s.seen.insert({site.file, site.line});
  return !s.left_out.empty() && name_of(site) == s.left_out;
}

void arrive(std::vector<Copy>& copies) {
  for (const Copy& copy : copies) std::memcpy(copy.to, copy.bytes.data(), copy.bytes.size());
}

}  // namespace

const ThreadInfo& thread() { return state().current->info; }
int lane() { return state().current->index % kLanes; }
unsigned char* shared_memory() { return state().shared_begin; }

void launch(Dim3 grid, Dim3 block, size_t shared_bytes, const std::function<void()>& kernel) {
  State& s = state();
  const size_t threads = size_t(block.x) * block.y * block.z, blocks = size_t(grid.x) * grid.y * grid.z;
  if (threads % kLanes) throw std::runtime_error("the emulator runs whole warps only");
  while (s.fibers.size() < threads) s.fibers.push_back(std::make_unique<Fiber>());
  s.warps.resize(threads / kLanes);
  s.shared.resize(shared_bytes + 128 + kGuard);
  const uintptr_t address = reinterpret_cast<uintptr_t>(s.shared.data());
  s.shared_begin = s.shared.data() + (128 - address % 128) % 128;
  s.kernel = &kernel;
  std::vector<size_t> order(blocks);
  for (size_t i = 0; i < blocks; ++i) order[i] = i;
  std::shuffle(order.begin(), order.end(), s.random);
  for (const size_t b : order) {
    std::memset(s.shared.data(), kPoison, s.shared.size());
    for (size_t i = 0; i < threads; ++i) {
      Fiber& fiber = *s.fibers[i];
      fiber.info = {unflatten(i, block), unflatten(b, grid), block, grid};
      fiber.index = int(i);
      fiber.waiting = Waiting::kNot;
      fiber.started = false;
      fiber.exchanges = 0;
      fiber.open.clear();
      fiber.groups.clear();
    }
    run_block(threads);
    for (const unsigned char* p = s.shared_begin + shared_bytes; p < s.shared.data() + s.shared.size(); ++p)
      if (*p != kPoison) throw std::runtime_error("a kernel wrote behind its shared memory");
  }
}

void block_barrier(Site site) {
  if (!is_left_out(site)) wait(Waiting::kForBlock, site);
}
void warp_barrier(Site site) {
  if (!is_left_out(site)) wait(Waiting::kForWarp, site);
}

void require_full_warp(unsigned mask) {
  if (mask != 0xffffffffu) throw std::runtime_error("warp operations take the whole warp here");
}

// Two sets of slots in turn: whoever is one exchange ahead does not overwrite what others still read.
const unsigned char* exchange_bytes(const void* mine, size_t bytes) {
  State& s = state();
  if (bytes > kMostExchanged) throw std::runtime_error("too much for one exchange");
  Fiber& fiber = *s.current;
  unsigned char* slots = s.warps[size_t(fiber.index / kLanes)].slots[fiber.exchanges++ % 2];
  std::memcpy(slots + size_t(fiber.index % kLanes) * bytes, mine, bytes);
  wait(Waiting::kForWarp, {"a warp operation", 0});
  return slots;
}

void async_copy(void* to, const void* from, size_t bytes, size_t valid_bytes) {
  Copy copy{to, std::vector<unsigned char>(bytes, 0)};
  std::memcpy(copy.bytes.data(), from, valid_bytes);
  std::memset(to, kPoison, bytes);
  state().current->open.push_back(std::move(copy));
}

void async_commit() {
  Fiber& fiber = *state().current;
  fiber.groups.push_back(std::move(fiber.open));
  fiber.open.clear();
}

void async_wait(int groups_still_out) {
  Fiber& fiber = *state().current;
  while (int(fiber.groups.size()) > groups_still_out) {
    arrive(fiber.groups.front());
    fiber.groups.pop_front();
  }
}

void set_seed(uint64_t seed) { state().random.seed(seed); }
std::vector<std::string> barriers_seen() {
  std::set<std::string> names;  // one header may be compiled into several places
  for (const auto& [file, line] : state().seen) names.insert(name_of({file, line}));
  return {names.begin(), names.end()};
}
void leave_out(const std::string& barrier) { state().left_out = barrier; }
void forget_barriers() { state().seen.clear(); }

}  // namespace emu
}  // namespace ccp
