#include "host_emu/fibers.h"

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <exception>
#include <memory>
#include <random>
#include <set>
#include <stdexcept>
#include <utility>

namespace ccp {
namespace emu {

namespace {

constexpr size_t kStackBytes = 256 * 1024;
constexpr int kLanes = 32;
constexpr unsigned char kPoison = 0xff;     // all bits set: NaN as a float, -1 as an integer
constexpr uint64_t kFew = 100, kSlow = 64;  // one thread in so many goes on only once in so many times, if some lag
constexpr size_t kMostExchanged = 512;      // bytes a lane may hand over at a time
constexpr size_t kSharedAlignment = 1024;
constexpr size_t kGuard = 4096;  // bytes behind shared memory that nobody may write

enum class Waiting { kNot, kForBlock, kForWarp, kForEvent, kDone };

struct Copy {
  void* to;
  std::vector<unsigned char> bytes;
};

struct Fiber {
  ThreadInfo info;
  int index = 0;
  Waiting waiting = Waiting::kNot;
  Site site{};
  const std::function<bool()>* event = nullptr;
  bool started = false, slow = false;
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
  bool lag = false;

  std::vector<std::unique_ptr<Fiber>> fibers;
  std::vector<Warp> warps;
  std::vector<unsigned char> shared;
  unsigned char *shared_begin = nullptr, *shared_end = nullptr;
  const std::function<void()>* kernel = nullptr;
  Fiber* current = nullptr;
  std::exception_ptr failure;  // of a thread
  jmp_buf scheduler;
  ucontext_t scheduler_context;
  int64_t first_blocks = 0, last_blocks = 0;
  const unsigned char *missing_begin = nullptr, *missing_end = nullptr;
  size_t most_shared_bytes = 0;
  int64_t launches = 0, blocks = 0, matrix_loads = 0, matrix_conflicts = 0;
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
  try {
    (*state().kernel)();
  } catch (...) {  // may not leave this stack; the scheduler throws it again
    state().failure = std::current_exception();
  }
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

// The fibers begin .. end - 1 that can go on do, in a new order; false if there are none.
bool run_ready(size_t begin, size_t end, std::vector<size_t>& order) {
  State& s = state();
  order.resize(end - begin);
  for (size_t i = begin; i < end; ++i) order[i - begin] = i;
  std::shuffle(order.begin(), order.end(), s.random);
  bool went_on = false;
  for (const size_t i : order) {
    if (s.fibers[i]->waiting == Waiting::kForEvent && (*s.fibers[i]->event)()) s.fibers[i]->waiting = Waiting::kNot;
    if (s.fibers[i]->waiting != Waiting::kNot) continue;
    if (s.fibers[i]->slow && s.random() % kSlow) {
      went_on = true;  // later
      continue;
    }
    go_on(*s.fibers[i]);
    if (s.failure) std::rethrow_exception(std::exchange(s.failure, nullptr));
    went_on = true;
  }
  for (size_t first = begin; first < end; first += kLanes) {
    const size_t last = std::min(first + kLanes, end);
    if (all_wait(first, last, Waiting::kForWarp)) release(first, last);
  }
  return went_on;
}

// Either all warps go on together, or one after the other goes as far as it can: races of near and of far.
void run_block(size_t threads) {
  State& s = state();
  const bool apart = s.random() % 2;
  std::vector<size_t> warps(threads / kLanes), order;
  for (size_t i = 0; i < warps.size(); ++i) warps[i] = i;
  for (;;) {
    bool went_on = false;
    if (apart) {
      std::shuffle(warps.begin(), warps.end(), s.random);
      for (const size_t warp : warps)
        while (run_ready(warp * kLanes, (warp + 1) * kLanes, order)) went_on = true;
    } else {
      went_on = run_ready(0, threads, order);
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

void arrive(std::vector<Copy>& copies) {
  for (const Copy& copy : copies) std::memcpy(copy.to, copy.bytes.data(), copy.bytes.size());
}

}  // namespace

const ThreadInfo& thread() { return state().current->info; }
int lane() { return state().current->index % kLanes; }
int thread_number() { return state().current->index; }
int64_t block_number() { return state().blocks; }
unsigned char* shared_memory() { return state().shared_begin; }
unsigned shared_address(const void* shared) {
  return unsigned(static_cast<const unsigned char*>(shared) - state().shared_begin);
}

void launch(Dim3 grid, Dim3 block, size_t shared_bytes, const std::function<void()>& kernel) {
  State& s = state();
  const size_t threads = size_t(block.x) * block.y * block.z, blocks = size_t(grid.x) * grid.y * grid.z;
  if (threads == 0 || blocks == 0 || threads > 1024 || grid.y > 65535 || grid.z > 65535)
    throw std::runtime_error("CUDA refuses a launch of such a grid");
  if (threads % kLanes) throw std::runtime_error("the emulator runs whole warps only");
  while (s.fibers.size() < threads) s.fibers.push_back(std::make_unique<Fiber>());
  s.warps.resize(threads / kLanes);
  s.shared.resize(shared_bytes + kSharedAlignment + kGuard);
  const uintptr_t address = reinterpret_cast<uintptr_t>(s.shared.data());
  s.shared_begin = s.shared.data() + (kSharedAlignment - address % kSharedAlignment) % kSharedAlignment;
  s.shared_end = s.shared_begin + shared_bytes;
  s.kernel = &kernel;
  ++s.launches;
  s.most_shared_bytes = std::max(s.most_shared_bytes, shared_bytes);
  const size_t some = size_t(s.first_blocks + s.last_blocks), run = some > 0 ? std::min(blocks, some) : blocks;
  const size_t first = some > 0 ? std::min(run, size_t(s.first_blocks)) : run;
  std::vector<size_t> order(run);
  for (size_t i = 0; i < run; ++i) order[i] = i < first ? i : blocks - run + i;
  std::shuffle(order.begin(), order.end(), s.random);
  for (const size_t b : order) {
    std::memset(s.shared.data(), kPoison, s.shared.size());
    for (size_t i = 0; i < threads; ++i) {
      Fiber& fiber = *s.fibers[i];
      fiber.info = {unflatten(i, block), unflatten(b, grid), block, grid};
      fiber.index = int(i);
      fiber.waiting = Waiting::kNot;
      fiber.started = false;
      fiber.slow = s.lag && s.random() % kFew == 0;
      fiber.exchanges = 0;
      fiber.open.clear();
      fiber.groups.clear();
    }
    ++s.blocks;
    run_block(threads);
    for (const unsigned char* p = s.shared_begin + shared_bytes; p < s.shared.data() + s.shared.size(); ++p)
      if (*p != kPoison) throw std::runtime_error("a kernel wrote behind its shared memory");
  }
}

bool is_left_out(Site site) {
  State& s = state();
  s.seen.insert({site.file, site.line});
  return !s.left_out.empty() && name_of(site) == s.left_out;
}

void block_barrier(Site site) {
  if (!is_left_out(site)) wait(Waiting::kForBlock, site);
}
void warp_barrier(Site site) {
  if (!is_left_out(site)) wait(Waiting::kForWarp, site);
}
void wait_until(const std::function<bool()>& ready, Site site) {
  state().current->event = &ready;
  if (!is_left_out(site) && !ready()) wait(Waiting::kForEvent, site);
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

void check_shared(const void* address, size_t bytes, size_t alignment, const char* what) {
  const auto* byte = static_cast<const unsigned char*>(address);
  if (reinterpret_cast<uintptr_t>(address) % alignment || byte < state().shared_begin ||
      byte + bytes > state().shared_end)
    throw std::runtime_error(std::string(what) + ": not " + std::to_string(bytes) + " bytes of shared memory on a " +
                             std::to_string(alignment) + "-byte boundary");
}

void check_matrix_row(const void* row) { check_shared(row, 16, 16, "ldmatrix"); }

void count_conflicts(const void* const (&rows)[8]) {
  State& s = state();
  unsigned banks = 0;
  for (const void* row : rows) banks |= 1u << reinterpret_cast<uintptr_t>(row) / 16 % 8;
  ++s.matrix_loads;
  s.matrix_conflicts += banks != 0xff;
}

void async_copy(void* to, const void* from, size_t bytes, size_t valid_bytes) {
  check_shared(to, 16, 16, "cp.async");
  if (reinterpret_cast<uintptr_t>(from) % 16) throw std::runtime_error("cp.async: from no 16-byte boundary");
  Copy copy{to, std::vector<unsigned char>(bytes, 0)};
  std::memcpy(copy.bytes.data(), from, valid_bytes);
  std::memset(to, kPoison, bytes);
  state().current->open.push_back(std::move(copy));
}

void async_commit(Site site) {
  if (is_left_out(site)) return;
  Fiber& fiber = *state().current;
  fiber.groups.push_back(std::move(fiber.open));
  fiber.open.clear();
}

void async_wait(int groups_still_out, Site site) {
  if (is_left_out(site)) return;
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
void let_lag(bool lag) { state().lag = lag; }
void forget_barriers() { state().seen.clear(); }
void only_end_blocks(int64_t first, int64_t last) {
  state().first_blocks = first;
  state().last_blocks = last;
}
void leave_alone(const void* begin, const void* end) {
  state().missing_begin = static_cast<const unsigned char*>(begin);
  state().missing_end = static_cast<const unsigned char*>(end);
}
void set_memory(void* to, int value, size_t bytes) {
  auto* begin = static_cast<unsigned char*>(to);
  auto* const end = begin + bytes;
  if (begin && begin == state().missing_begin) begin = std::min(end, const_cast<unsigned char*>(state().missing_end));
  std::memset(begin, value, size_t(end - begin));
}
int64_t launches() { return state().launches; }
size_t most_shared_bytes() { return std::exchange(state().most_shared_bytes, 0); }
int64_t matrix_loads() { return state().matrix_loads; }
int64_t matrix_conflicts() { return state().matrix_conflicts; }

}  // namespace emu
}  // namespace ccp
