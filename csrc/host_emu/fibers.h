// Runs the threads of a block as fibers: one goes on until it meets a barrier, then another does. Which one is drawn
// from a seed, as are whether warps go on together or one by one, and the order of the blocks; and shared memory starts
// as NaN, so that a missing barrier, a race between blocks or a read of memory never written gives wrong numbers for
// some seed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <type_traits>
#include <vector>

namespace ccp {
namespace emu {

struct Dim3 {
  unsigned x, y, z;
  constexpr Dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

// Where a barrier stands in the source, or whatever else a test may leave out.
struct Site {
  const char* file;
  int line;
};

// What a running kernel thread knows about itself.
struct ThreadInfo {
  Dim3 thread_index, block_index, block_dim, grid_dim;
};
const ThreadInfo& thread();
int lane();
int thread_number();     // in the block
int64_t block_number();  // of all that have run: what belongs to another block is over

// Runs a kernel to its end. Throws std::runtime_error for a barrier that not all threads reach, and for a grid that
// CUDA would refuse.
void launch(Dim3 grid, Dim3 block, size_t shared_bytes, const std::function<void()>& kernel);
unsigned char* shared_memory();
unsigned shared_address(const void* shared);  // counted from its beginning
// Throws std::runtime_error, in the name of `what`, unless these bytes lie in shared memory, aligned.
void check_shared(const void* address, size_t bytes, size_t alignment, const char* what);

void block_barrier(Site site);
void wait_until(const std::function<bool()>& ready, Site site);  // alone, for something that others bring about
void warp_barrier(Site site);
void require_full_warp(unsigned mask);

// A warp's lanes hand each other `bytes` bytes each: returns every lane's, 32 in a row, valid until the next exchange.
const unsigned char* exchange_bytes(const void* mine, size_t bytes);

// f(of), where of(i) is lane i's value.
template <class T, class F>
auto exchange(const T& mine, const F& f) {
  static_assert(std::is_trivially_copyable<T>::value, "lanes exchange plain values");
  const unsigned char* all = exchange_bytes(&mine, sizeof(T));
  return f([all](int i) {
    T value;
    __builtin_memcpy(&value, all + size_t(i) * sizeof(T), sizeof(T));
    return value;
  });
}

// ldmatrix: what a GPU traps on, and which of the eight rows of a matrix lie in the same banks.
void check_matrix_row(const void* row);
void count_conflicts(const void* const (&rows)[8]);
template <class Of>
void count_matrix(const Of& of, int matrix) {
  if (lane() != 0) return;
  const void* rows[8];
  for (int i = 0; i < 8; ++i) rows[i] = of(matrix * 8 + i);
  count_conflicts(rows);
}

// Asynchronous copies arrive only when they are waited for; until then the target holds NaN. Both addresses have to lie
// on 16-byte boundaries, and the target in shared memory.
void async_copy(void* to, const void* from, size_t bytes, size_t valid_bytes);
void async_commit(Site site);
void async_wait(int groups_still_out, Site site);

// For tests.
void set_seed(uint64_t seed);
std::vector<std::string> barriers_seen();    // "file:line" of every barrier met since the last reset
void leave_out(const std::string& barrier);  // threads run through it; "" leaves out none
bool is_left_out(Site site);                 // and it has been seen
void let_lag(bool lag);  // a few threads fall far behind, those of their own warp included, where nobody waits for them
void forget_barriers();
void only_end_blocks(int64_t first, int64_t last);  // of every grid, the others never run; 0, 0: all do
// Memory that is not there: a memset that begins with it begins behind it. Until the next call.
void leave_alone(const void* begin, const void* end);
void set_memory(void* to, int value, size_t bytes);
int64_t launches();          // since the start
size_t most_shared_bytes();  // that a launch has asked for since this was asked
int64_t matrix_loads();      // 8×8 matrices that ldmatrix has loaded
int64_t matrix_conflicts();  // of those, with rows in the same banks

}  // namespace emu
}  // namespace ccp
