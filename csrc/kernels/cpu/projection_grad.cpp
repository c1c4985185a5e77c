#include "kernels/cpu/projection_grad.h"

#include "common/buffer.h"
#include "common/convert.h"
#include "common/simd.h"

namespace ccp {
namespace CCP_CAPABILITY {
namespace {

constexpr int kSumLanes = 16;            // partial sums of squares, the same for every instruction set
constexpr int64_t kChunk = 1 << 15;      // elements; fixes the order of summation
constexpr int64_t kConvertBlock = 1024;  // elements converted at a time where types differ: three buffers in L1

CCP_HD int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }

// As many consecutive numbers as a register holds doubles, as doubles.
CCP_HD VecD load_double(const double* p) { return load(p); }
CCP_HD VecD load_double(const float* p) {
  typedef float HalfVec __attribute__((vector_size(kVectorBytes / 2)));
  HalfVec v;
  memcpy(&v, p, sizeof(v));
  return __builtin_convertvector(v, VecD);
}

// kSumLanes elements; adds the squared differences to sum. Nothing is read after it may have been written: grad may be
// param.
template <class T, bool kHasGrad>
CCP_HD void step(T* grad, const T* param, const T* previous, T lam, VecD* sum) {
  for (int v = 0; v < kSumLanes / kLanes<double>; ++v) {
    const VecD difference = load_double(param + v * kLanes<double>) - load_double(previous + v * kLanes<double>);
    sum[v] = sum[v] + difference * difference;
  }
  if (!kHasGrad) return;
  for (int i = 0; i < kSumLanes; i += kLanes<T>)
    store(grad + i, load(grad + i) + (load(param + i) - load(previous + i)) * lam);
}

template <class T, bool kHasGrad>
double run(T* grad, const T* param, const T* previous, int64_t n, T lam) {
  VecD sum[kSumLanes / kLanes<double>] = {};
  int64_t i = 0;
  for (; i + kSumLanes <= n; i += kSumLanes) step<T, kHasGrad>(grad + i, param + i, previous + i, lam, sum);
  if (i < n) {
    T last[3][kSumLanes] = {};
    const size_t bytes = sizeof(T) * size_t(n - i);
    if (kHasGrad) memcpy(last[0], grad + i, bytes);
    memcpy(last[1], param + i, bytes);
    memcpy(last[2], previous + i, bytes);
    step<T, kHasGrad>(last[0], last[1], last[2], lam, sum);
    if (kHasGrad) memcpy(grad + i, last[0], bytes);
  }
  double lanes[kSumLanes];
  memcpy(lanes, sum, sizeof(lanes));
  double total = 0;
  for (double lane : lanes) total += lane;
  return total;
}

template <class T>
double run_chunk(const ProjectionTensor& t, int64_t begin, int64_t n, T lam, Dtype own) {
  if (t.param_dtype == own && t.previous_dtype == own && (!t.grad || t.grad_dtype == own)) {
    T* grad = static_cast<T*>(t.grad) + begin;
    const T* param = static_cast<const T*>(t.param) + begin;
    const T* previous = static_cast<const T*>(t.previous) + begin;
    return t.grad ? run<T, true>(grad, param, previous, n, lam) : run<T, false>(nullptr, param, previous, n, lam);
  }
  T grad[kConvertBlock], param[kConvertBlock], previous[kConvertBlock];
  double total = 0;
  for (int64_t end = begin + n; begin < end; begin += kConvertBlock) {
    const int64_t m = min(kConvertBlock, end - begin);
    read_elements(t.param, t.param_dtype, begin, m, param);
    read_elements(t.previous, t.previous_dtype, begin, m, previous);
    if (!t.grad) {
      total += run<T, false>(nullptr, param, previous, m, lam);
      continue;
    }
    read_elements(t.grad, t.grad_dtype, begin, m, grad);
    total += run<T, true>(grad, param, previous, m, lam);
    write_elements(grad, m, t.grad, t.grad_dtype, begin);
  }
  return total;
}

bool any_double(const ProjectionTensor& t) {
  return t.param_dtype == Dtype::kFloat64 || t.previous_dtype == Dtype::kFloat64 ||
         (t.grad && t.grad_dtype == Dtype::kFloat64);
}

}  // namespace

double projection_grad(const ProjectionGradProblem& problem) {
  struct Chunk {
    int64_t tensor, begin;
  };
  int64_t count = 0;
  for (int64_t t = 0; t < problem.count; ++t) count += (problem.tensors[t].numel + kChunk - 1) / kChunk;
  Buffer<Chunk> chunks(count);
  Buffer<double> sums(count);
  int64_t filled = 0;
  for (int64_t t = 0; t < problem.count; ++t)
    for (int64_t begin = 0; begin < problem.tensors[t].numel; begin += kChunk) chunks[filled++] = {t, begin};

  problem.parallel_for(count, [&](int64_t c) {
    const Chunk chunk = static_cast<const Chunk*>(chunks)[c];
    const ProjectionTensor& t = problem.tensors[chunk.tensor];
    const int64_t n = min(kChunk, t.numel - chunk.begin);
    sums[c] = any_double(t) ? run_chunk<double>(t, chunk.begin, n, problem.lam, Dtype::kFloat64)
                            : run_chunk<float>(t, chunk.begin, n, float(problem.lam), Dtype::kFloat32);
  });
  double total = 0;
  for (int64_t c = 0; c < count; ++c) total += static_cast<const double*>(sums)[c];
  return total;
}

}  // namespace CCP_CAPABILITY
}  // namespace ccp
