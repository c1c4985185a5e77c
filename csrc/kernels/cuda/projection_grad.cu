// A block does a chunk of 2^15 elements, tile by tile. Most of its warps stream: they have the next tile's loads under
// way while they step through this one. The last warp adds up the squared differences, a tile behind.
//
// Bytes in flight decide the speed. A streaming thread has 16 bytes of each of three arrays on their way, a block
// 24 KiB, and two blocks fit on a multiprocessor: 48 KiB, where an H200 should need about 20 (3.2 TB/s of reads,
// 0.8 us, 132 multiprocessors). The adding warp's chain, 2^11 dependent additions a chunk, is shorter than the 512 KiB
// take to read and write.
#include "kernels/cuda/projection_grad.h"
#include "kernels/cuda/projection_grad/ordered_sum.cuh"
#include "kernels/cuda/projection_grad/share.cuh"
#include "kernels/cuda/projection_grad/table.h"

namespace ccp {
namespace cuda {
namespace projection {
namespace {

constexpr int kThreads = kStreamers + kWarp;

CCP_DEVICE bool is_streamer() { return threadIdx.x < kStreamers; }

template <class Share>
constexpr int kTile = kStreamers * Share::kEach;
template <class Share>
constexpr int kBuffer = kTile<Share> + kSumLanes;  // a tile's squares

// A block per chunk of the table. Shared memory [2, kBuffer] of doubles: one tile is streamed while the other is
// summed, and the barrier turns them round.
template <class Share>
__global__ void __launch_bounds__(kThreads, 2) projection_grad_kernel(const __grid_constant__ Table table) {
  CCP_SHARED(shared);
  double* const squares = reinterpret_cast<double*>(shared);
  const Chunk chunk = chunk_of(table, blockIdx.x);
  const int tiles = (chunk.n + kTile<Share> - 1) / kTile<Share>;
  const bool converts = Share::converts(chunk.entry);

  Share next;
  if (is_streamer()) next.load(chunk, 0);
  OrderedSum<Share::kRun> sum;
  for (int t = 0; t <= tiles; ++t) {
    const int tile = t * kTile<Share>;
    if (is_streamer() && t < tiles) {
      const Share share = next;
      if (t + 1 < tiles) next.load(chunk, tile + kTile<Share>);
      share.step(chunk, tile, typename Share::Value(table.lam), squares + t % 2 * kBuffer<Share>);
    }
    if (!is_streamer() && t > 0) {
      const double* const before = squares + (t - 1) % 2 * kBuffer<Share>;
      const int left = chunk.n - (tile - kTile<Share>), n = left < kTile<Share> ? left : kTile<Share>;
      if (converts)
        sum.add_in_blocks(before, n);
      else
        sum.add(before, n);
    }
    __syncthreads();
  }
  if (is_streamer()) return;
  if (!converts) sum.fold();
  if (threadIdx.x == kStreamers) table.chunk_sums[chunk.sum] = sum.total;
}

// Adds up the chunks' sums [count], first to last, in one block: its last warp adds, the others fetch.
__global__ void __launch_bounds__(kThreads)
    projection_penalty_kernel(const double* chunk_sums, int64_t count, double lam, void* penalty, bool wide) {
  CCP_SHARED(shared);
  double* const buffer = reinterpret_cast<double*>(shared);
  double total = 0;
  for (int64_t begin = 0; begin < count + kStreamers; begin += kStreamers) {
    const int64_t mine = begin + threadIdx.x, before = begin - kStreamers;
    const int half = int(begin / kStreamers % 2) * kStreamers;
    if (is_streamer() && mine < count) buffer[half + threadIdx.x] = chunk_sums[mine];
    if (!is_streamer() && before >= 0) {
      const int n = int(count - before < kStreamers ? count - before : kStreamers);
#pragma unroll 8
      for (int i = 0; i < n; ++i) total = __dadd_rn(total, buffer[kStreamers - half + i]);
    }
    __syncthreads();
  }
  if (threadIdx.x != kStreamers) return;
  const double value = __dmul_rn(__dmul_rn(0.5, lam), total);
  if (wide)
    *static_cast<double*>(penalty) = value;
  else
    *static_cast<float*>(penalty) = float(value);
}

template <class Share>
cudaError_t launch(const Table& table, cudaStream_t stream) {
  constexpr size_t kSharedBytes = 2 * sizeof(double) * kBuffer<Share>;
  const cudaError_t error = allow_shared_memory(projection_grad_kernel<Share>, kSharedBytes);
  if (error != cudaSuccess) return error;
  CCP_LAUNCH(projection_grad_kernel<Share>, dim3(table.chunks), dim3(kThreads), kSharedBytes, stream, table);
  return cudaGetLastError();
}

using Launch = cudaError_t (*)(const Table& table, cudaStream_t stream);
constexpr Launch kLaunches[] = {
    launch<Vector<Dtype::kFloat32>>, launch<Vector<Dtype::kFloat64>>, launch<Vector<Dtype::kBFloat16>>,
    launch<Vector<Dtype::kFloat16>>, launch<Elements<float>>,         launch<Elements<double>>,
};

// 16 bytes at a time where the three arrays are aligned and of one type.
Launch launch_for(const ProjectionTensor& t) {
  const Dtype grad_dtype = t.grad ? t.grad_dtype : t.param_dtype;
  const bool one_type = t.param_dtype == t.previous_dtype && t.param_dtype == grad_dtype;
  const bool any_double =
      t.param_dtype == Dtype::kFloat64 || t.previous_dtype == Dtype::kFloat64 || grad_dtype == Dtype::kFloat64;
  const uintptr_t addresses = reinterpret_cast<uintptr_t>(t.grad) | reinterpret_cast<uintptr_t>(t.param) |
                              reinterpret_cast<uintptr_t>(t.previous);
  if (!one_type || addresses % kVectorBytes) return any_double ? launch<Elements<double>> : launch<Elements<float>>;
  switch (t.param_dtype) {
    case Dtype::kFloat32:
      return launch<Vector<Dtype::kFloat32>>;
    case Dtype::kFloat64:
      return launch<Vector<Dtype::kFloat64>>;
    case Dtype::kBFloat16:
      return launch<Vector<Dtype::kBFloat16>>;
    default:
      return launch<Vector<Dtype::kFloat16>>;
  }
}

// Those tensors of the list that this launch is for, in as many launches as it takes.
cudaError_t launch_all(Launch launch, const ProjectionGrad& problem, cudaStream_t stream) {
  Table table;
  table.lam = problem.lam;
  table.chunk_sums = problem.chunk_sums;
  table.clear();
  int64_t sums = 0;
  for (int64_t i = 0; i < problem.count; ++i) {
    const ProjectionTensor& t = problem.tensors[i];
    if (t.numel > 0 && launch_for(t) == launch) {
      if (table.is_full()) {
        const cudaError_t error = launch(table, stream);
        if (error != cudaSuccess) return error;
        table.clear();
      }
      table.add(t, sums);
    }
    sums += chunks_of(t.numel);
  }
  return table.count > 0 ? launch(table, stream) : cudaSuccess;
}

}  // namespace
}  // namespace projection

int64_t projection_grad_chunks(const ProjectionTensor* tensors, int64_t count) {
  int64_t chunks = 0;
  for (int64_t i = 0; i < count; ++i) chunks += projection::chunks_of(tensors[i].numel);
  return chunks;
}

cudaError_t projection_grad(const ProjectionGrad& problem, cudaStream_t stream) {
  using namespace projection;
  const int64_t chunks = projection_grad_chunks(problem.tensors, problem.count);
  if (chunks == 0) return clear_memory(problem.penalty, dtype_bytes(problem.penalty_dtype), stream);
  for (const Launch launch : kLaunches) {
    const cudaError_t error = launch_all(launch, problem, stream);
    if (error != cudaSuccess) return error;
  }
  CCP_LAUNCH(projection_penalty_kernel, dim3(1), dim3(kThreads), 2 * kStreamers * sizeof(double), stream,
             problem.chunk_sums, chunks, problem.lam, problem.penalty, problem.penalty_dtype == Dtype::kFloat64);
  return cudaGetLastError();
}

}  // namespace cuda
}  // namespace ccp
