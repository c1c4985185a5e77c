// Kernels that consist of one primitive each, to test the emulator itself.
#include <pybind11/numpy.h>

#include "common/async_copy.h"
#include "common/mma.h"
#include "host_emu/bindings.h"

namespace py = pybind11;

namespace ccp {
namespace emu {

namespace {

using Floats = py::array_t<float, py::array::c_style>;

template <Products products>
__global__ void multiply_fragments(const FragmentA* a, const FragmentB* b, FragmentD* d) {
  FragmentD sum[1][1] = {{d[threadIdx.x]}};
  const FragmentA left[1] = {a[threadIdx.x]};
  const FragmentB right[1] = {b[threadIdx.x]};
  multiply<products>(sum, left, right);
  d[threadIdx.x] = sum[0][0];
}

// What 32 lanes hold, [32, 4], [32, 2] and [32, 4].
Floats mma_of_lanes(Floats a, Floats b, Floats d, bool precise) {
  Floats out(std::vector<int64_t>{kWarp, 4});
  std::copy_n(d.data(), kWarp * 4, out.mutable_data());
  const auto* left = reinterpret_cast<const FragmentA*>(a.data());
  const auto* right = reinterpret_cast<const FragmentB*>(b.data());
  auto* sum = reinterpret_cast<FragmentD*>(out.mutable_data());
  if (precise)
    CCP_LAUNCH(multiply_fragments<Products::kThree>, dim3(1), dim3(kWarp), 0, nullptr, left, right, sum);
  else
    CCP_LAUNCH(multiply_fragments<Products::kOne>, dim3(1), dim3(kWarp), 0, nullptr, left, right, sum);
  return out;
}

__global__ void copy_and_look(const float* from, int valid_bytes, float* before, float* after) {
  CCP_SHARED(bytes);
  float* shared = reinterpret_cast<float*>(bytes);
  if (threadIdx.x != 0) return;
  copy_async_16(shared, from, valid_bytes);
  copy_async_commit();
  for (int i = 0; i < 4; ++i) before[i] = shared[i];
  copy_async_wait<0>();
  for (int i = 0; i < 4; ++i) after[i] = shared[i];
}

// Shared memory seen before and after an asynchronous copy is waited for.
py::tuple async_copy_seen(Floats from, int valid_bytes) {
  Floats before(4), after(4);
  CCP_LAUNCH(copy_and_look, dim3(1), dim3(kWarp), 16, nullptr, from.data(), valid_bytes, before.mutable_data(),
             after.mutable_data());
  return py::make_tuple(before, after);
}

__global__ void reverse(const int* in, int* out) {
  CCP_SHARED(bytes);
  int* shared = reinterpret_cast<int*>(bytes);
  shared[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = shared[blockDim.x - 1 - threadIdx.x];
}

py::array_t<int> reversed(py::array_t<int, py::array::c_style> in) {
  const int n = int(in.size());
  py::array_t<int> out(n);
  CCP_LAUNCH(reverse, dim3(1), dim3(unsigned(n)), size_t(n) * sizeof(int), nullptr, in.data(), out.mutable_data());
  return out;
}

// One warp is at a block's barrier while the other is at a warp's that its lane 0 never reaches.
__global__ void wait_for_each_other() {
  if (threadIdx.x < kWarp || threadIdx.x == kWarp)
    __syncthreads();
  else
    __syncwarp();
}

__global__ void write_behind() {
  CCP_SHARED(bytes);
  bytes[threadIdx.x] = 0;
}

}  // namespace

void bind_primitives(py::module_& m) {
  m.def("mma", &mma_of_lanes, py::arg("a"), py::arg("b"), py::arg("d"), py::arg("precise"));
  m.def("async_copy", &async_copy_seen, py::arg("source"), py::arg("valid_bytes"));
  m.def("reversed", &reversed);
  m.def("overrun", [] { CCP_LAUNCH(write_behind, dim3(1), dim3(kWarp), kWarp - 1, nullptr, ); });
  m.def("deadlock", [] { CCP_LAUNCH(wait_for_each_other, dim3(1), dim3(2 * kWarp), 0, nullptr, ); });
}

}  // namespace emu
}  // namespace ccp
