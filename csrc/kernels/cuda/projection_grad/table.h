// The chunks of a launch, handed over as kernel arguments: nothing has to be copied to the device first.
//
// Tensors are listed, not chunks, so their sizes do not matter. 4 KiB of arguments describe 84 tensors, and every
// driver takes them; 32 KiB describe 682, a network in one launch, and need driver 530, more than CUDA 12 implies.
#pragma once

#include "common/cuda.h"
#include "kernels/cpu/projection_grad.h"  // ProjectionTensor

namespace ccp {
namespace cuda {
namespace projection {

constexpr int kChunk = 1 << 15;  // elements; fixes the order of summation, on the CPU too

inline int64_t chunks_of(int64_t numel) { return (numel + kChunk - 1) / kChunk; }

struct Entry {
  void* grad;
  const void* param;
  const void* previous;
  int64_t numel;
  int64_t first_sum;     // its first chunk's place among all chunks of the list
  uint32_t first_chunk;  // and among the launch's
  uint8_t grad_dtype, param_dtype, previous_dtype;
};

#if defined(CUDART_VERSION) && CUDART_VERSION >= 13000
constexpr size_t kArgumentBytes = 32764;
#else
constexpr size_t kArgumentBytes = 4096;
#endif
constexpr int kEntries = int((kArgumentBytes - 3 * sizeof(double)) / sizeof(Entry));

struct Table {
  double lam;
  double* chunk_sums;  // of all chunks of the list
  int count;
  uint32_t chunks;
  Entry entries[kEntries];

  void clear() { count = 0, chunks = 0; }
  bool is_full() const { return count == kEntries; }

  // A tensor that is not empty.
  void add(const ProjectionTensor& t, int64_t first_sum) {
    entries[count++] = {t.grad,
                        t.param,
                        t.previous,
                        t.numel,
                        first_sum,
                        chunks,
                        uint8_t(t.grad_dtype),
                        uint8_t(t.param_dtype),
                        uint8_t(t.previous_dtype)};
    chunks += uint32_t(chunks_of(t.numel));
  }
};
static_assert(sizeof(Table) <= kArgumentBytes, "more than a launch takes as arguments");

// Elements begin .. begin + n - 1 of an entry.
struct Chunk {
  const Entry& entry;
  int64_t begin;
  int n;
  int64_t sum;  // its place in chunk_sums
};

CCP_DEVICE Chunk chunk_of(const Table& table, uint32_t block) {
  int low = 0, high = table.count;  // the last entry that begins at this chunk or before
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (table.entries[middle].first_chunk <= block)
      low = middle;
    else
      high = middle;
  }
  const Entry& entry = table.entries[low];
  const int64_t index = block - entry.first_chunk, begin = index * kChunk, left = entry.numel - begin;
  return {entry, begin, int(left < kChunk ? left : kChunk), entry.first_sum + index};
}

}  // namespace projection
}  // namespace cuda
}  // namespace ccp
