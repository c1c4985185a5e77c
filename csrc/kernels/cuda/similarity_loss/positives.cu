// The lists of each row's positives, for losses that read them (kUsesPositives).
#include "kernels/cuda/similarity_loss/slices.h"
#include "kernels/cuda/similarity_loss/warp.cuh"

namespace ccp {
namespace cuda {

namespace {

struct ListJob {
  Items rows, columns;
  int64_t dim;
  Normalize normalize;
  bool exclude_diagonal;
};

// f(column, place) for each column of the row's class in ascending order, and how many there are; a warp together.
// Columns whose labels are implied need no search.
template <class F>
CCP_DEVICE int64_t for_each_positive(const ListJob& job, int64_t row, const F& f) {
  const int64_t label = job.rows.label(row), count = job.columns.side.count;
  int64_t begin = 0, end = count, found = 0;
  if (!job.columns.side.labels) {
    begin = label < 0 || label >= count / job.columns.side.group ? 0 : label * job.columns.side.group;
    end = label < 0 || label >= count / job.columns.side.group ? 0 : begin + job.columns.side.group;
  }
  for (int64_t first = begin; first < end; first += kWarp) {
    const int64_t column = first + threadIdx.x % kWarp;
    const bool is_positive =
        column < end && job.columns.label(column) == label && !(job.exclude_diagonal && column == row);
    const unsigned lanes = __ballot_sync(kFullWarp, is_positive);
    for (unsigned left = lanes; left; left &= left - 1) {
      f(first + __ffs(int(left)) - 1, found + __popc(lanes & ((left & -left) - 1)));
    }
    found += __popc(lanes);
  }
  return found;
}

__global__ void __launch_bounds__(kThreads) count_each(const ListJob job, int64_t* starts) {
  const int64_t row = int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  if (row >= job.rows.side.count) return;
  const int64_t count = for_each_positive(job, row, [](int64_t, int64_t) {});
  if (threadIdx.x % kWarp == 0) starts[row + 1] = count;
}

// One block: starts[i] = the sum of the counts before row i.
constexpr int kScanThreads = 1024;

__global__ void __launch_bounds__(kScanThreads) add_up(int64_t* starts, int64_t rows) {
  CCP_SHARED(bytes);
  int64_t* sums = reinterpret_cast<int64_t*>(bytes);
  const int64_t begin = rows * threadIdx.x / kScanThreads, end = rows * (threadIdx.x + 1) / kScanThreads;
  int64_t mine = 0;
  for (int64_t i = begin; i < end; ++i) mine += starts[i + 1];
  sums[threadIdx.x] = mine;
  for (int distance = 1; distance < kScanThreads; distance *= 2) {
    __syncthreads();
    const int64_t before = int(threadIdx.x) >= distance ? sums[threadIdx.x - distance] : 0;
    __syncthreads();
    sums[threadIdx.x] += before;
  }
  int64_t total = sums[threadIdx.x] - mine;
  for (int64_t i = begin; i < end; ++i) {
    total += starts[i + 1];
    starts[i + 1] = total;
  }
  if (threadIdx.x == 0) starts[0] = 0;
}

// Among proxies each row has as many places as a class has proxies. Of a row of no class they count for nothing, at a
// distance of -inf.
__global__ void __launch_bounds__(kThreads)
    gather(const ListJob job, int64_t* starts, int64_t* columns, float* distances, float* farthest, int32_t* active) {
  const int64_t row = int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarp, rows = job.rows.side.count;
  if (row >= rows) return;
  const int64_t group = job.columns.side.labels ? 0 : job.columns.side.group;
  const int64_t begin = group ? row * group : starts[row];
  const int lane = int(threadIdx.x) % kWarp;
  if (group && lane == 0) {
    starts[row] = begin;
    if (row == rows - 1) starts[rows] = rows * group;
  }
  const float row_scale = warp_scale(job.rows.side, row, job.dim, job.normalize);
  float largest = -__builtin_inff();
  const int64_t found = for_each_positive(job, row, [&](int64_t column, int64_t place) {
    const float column_scale = warp_scale(job.columns.side, column, job.dim, job.normalize);
    const float distance =
        warp_distance(job.rows.side, row, row_scale, job.columns.side, column, column_scale, job.dim);
    if (!(distance <= largest)) largest = distance;  // a NaN stays
    if (lane == 0) {
      columns[begin + place] = column;
      distances[begin + place] = distance;
      active[begin + place] = 0;
    }
  });
  for (int64_t place = found + lane; place < group; place += kWarp) {
    columns[begin + place] = -1;
    distances[begin + place] = -__builtin_inff();
    active[begin + place] = 0;
  }
  if (lane == 0) farthest[row] = largest;
}

// A thread for each row.
__global__ void __launch_bounds__(kThreads)
    list_known(const ListJob job, const float* distances, const int32_t* counts, int64_t* starts, int64_t* columns,
               float* farthest, int32_t* active) {
  const int64_t row = int64_t(blockIdx.x) * kThreads + threadIdx.x, group = job.columns.side.group;
  if (row > job.rows.side.count) return;
  starts[row] = row * group;
  if (row == job.rows.side.count) return;
  float largest = -__builtin_inff();
  for (int64_t i = row * group; i < (row + 1) * group; ++i) {
    columns[i] = job.rows.label(row) * group + i - row * group;
    active[i] = counts ? counts[i] : 0;
    if (!(distances[i] <= largest)) largest = distances[i];  // a NaN stays
  }
  farthest[row] = largest;
}

ListJob list_job(const Problem& p) {
  return {items_of<float>(p.rows, p.dim), items_of<float>(p.columns, p.dim), p.dim, p.normalize, p.exclude_diagonal};
}

}  // namespace

int64_t most_positives(const Problem& p) {
  constexpr int64_t kFew = 1 << 20;  // 16 MiB of lists
  if (!p.columns.labels) return p.rows.count * p.columns.group;
  if (!p.rows.labels) return p.columns.count * p.rows.group;
  const int64_t pairs = p.rows.count * p.columns.count;
  return pairs <= kFew ? pairs : -1;
}

cudaError_t count_positives(const Problem& p, int64_t* starts, cudaStream_t stream) {
  if (!p.columns.labels) return cudaSuccess;
  const dim3 grid(unsigned(divide_up(p.rows.count, kWarps)));
  CCP_LAUNCH(count_each, grid, dim3(kThreads), 0, stream, list_job(p), starts);
  CCP_LAUNCH(add_up, dim3(1), dim3(kScanThreads), kScanThreads * sizeof(int64_t), stream, starts, p.rows.count);
  return cudaGetLastError();
}

cudaError_t list_known_positives(const Problem& p, const float* distances, const int32_t* counts, int64_t* starts,
                                 int64_t* columns, float* farthest, int32_t* active, cudaStream_t stream) {
  if (p.rows.count == 0) return cudaSuccess;
  const dim3 grid(unsigned(divide_up(p.rows.count + 1, kThreads)));
  CCP_LAUNCH(list_known, grid, dim3(kThreads), 0, stream, list_job(p), distances, counts, starts, columns, farthest,
             active);
  return cudaGetLastError();
}

cudaError_t gather_positives(const Problem& p, int64_t* starts, int64_t* columns, float* distances, float* farthest,
                             int32_t* active, cudaStream_t stream) {
  const dim3 grid(unsigned(divide_up(p.rows.count, kWarps)));
  CCP_LAUNCH(gather, grid, dim3(kThreads), 0, stream, list_job(p), starts, columns, distances, farthest, active);
  return cudaGetLastError();
}

}  // namespace cuda
}  // namespace ccp
