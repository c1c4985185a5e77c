// Kernels that consist of one primitive each, to test the emulator itself.
#include <pybind11/numpy.h>

#include "common/async_copy.h"
#include "common/ldmatrix.h"
#include "common/mma16.h"
#include "host_emu/bindings.h"
#include "host_emu/names.h"

namespace py = pybind11;

namespace ccp {
namespace emu {

namespace {

using Floats = py::array_t<float, py::array::c_style>;
using Bits = py::array_t<uint16_t, py::array::c_style>;

__global__ void multiply_fragments(Products products, const FragmentA* a, const FragmentB* b, FragmentD* d) {
  FragmentD sum[1][1] = {{d[threadIdx.x]}};
  const FragmentA left[1] = {a[threadIdx.x]};
  const FragmentB right[1] = {b[threadIdx.x]};
  multiply(products, sum, left, right);
  d[threadIdx.x] = sum[0][0];
}

// What 32 lanes hold, [32, 4], [32, 2] and [32, 4].
Floats mma_of_lanes(Floats a, Floats b, Floats d, bool precise) {
  Floats out(std::vector<int64_t>{kWarp, 4});
  std::copy_n(d.data(), kWarp * 4, out.mutable_data());
  const auto* left = reinterpret_cast<const FragmentA*>(a.data());
  const auto* right = reinterpret_cast<const FragmentB*>(b.data());
  auto* sum = reinterpret_cast<FragmentD*>(out.mutable_data());
  CCP_LAUNCH(multiply_fragments, dim3(1), dim3(kWarp), 0, nullptr, precise ? Products::kThree : Products::kOne, left,
             right, sum);
  return out;
}

template <Dtype dtype>
__global__ void multiply_packed(const PackedA* a, const PackedB* b, FragmentD* d) {
  FragmentD sum[1][1] = {{d[threadIdx.x]}};
  const PackedA left[1] = {a[threadIdx.x]};
  const PackedB right[1] = {b[threadIdx.x]};
  mma16<dtype>(sum, left, right);
  d[threadIdx.x] = sum[0][0];
}

// What 32 lanes hold, [32, 8] and [32, 4] 16-bit numbers as their bits, and [32, 4].
Floats mma16_of_lanes(Bits a, Bits b, Floats d, const std::string& dtype) {
  Floats out(std::vector<int64_t>{kWarp, 4});
  std::copy_n(d.data(), kWarp * 4, out.mutable_data());
  const auto* left = reinterpret_cast<const PackedA*>(a.data());
  const auto* right = reinterpret_cast<const PackedB*>(b.data());
  auto* sum = reinterpret_cast<FragmentD*>(out.mutable_data());
  if (dtype_named(dtype) == Dtype::kBFloat16)
    CCP_LAUNCH(multiply_packed<Dtype::kBFloat16>, dim3(1), dim3(kWarp), 0, nullptr, left, right, sum);
  else
    CCP_LAUNCH(multiply_packed<Dtype::kFloat16>, dim3(1), dim3(kWarp), 0, nullptr, left, right, sum);
  return out;
}

template <bool transposed>
__global__ void load_and_look(const uint16_t* matrices, int stride, int misplaced, FourMatrices* out) {
  CCP_SHARED(bytes);
  unsigned char* row = bytes + int(threadIdx.x) * stride;
  std::memcpy(row, matrices + threadIdx.x * 8, 16);
  __syncwarp();
  out[threadIdx.x] = load_matrices<transposed>(row + misplaced);
}

// [4, 8, 8] 16-bit numbers as their bits, in rows `stride` bytes apart: what each lane gets, [32, 8].
Bits matrices_of_lanes(Bits matrices, bool transposed, int stride, int misplaced) {
  Bits out(std::vector<int64_t>{kWarp, 8});
  auto* lanes = reinterpret_cast<FourMatrices*>(out.mutable_data());
  const auto run = [&](auto kernel) {
    CCP_LAUNCH(kernel, dim3(1), dim3(kWarp), size_t(kWarp * stride), nullptr, matrices.data(), stride, misplaced,
               lanes);
  };
  transposed ? run(load_and_look<true>) : run(load_and_look<false>);
  return out;
}

__global__ void copy_and_look(const float* from, int valid_bytes, int misplaced, float* before, float* after) {
  CCP_SHARED(bytes);
  float* shared = reinterpret_cast<float*>(bytes);
  if (threadIdx.x != 0) return;
  copy_async_16(bytes + misplaced, from, valid_bytes);
  copy_async_commit();
  for (int i = 0; i < 4; ++i) before[i] = shared[i];
  copy_async_wait<0>();
  for (int i = 0; i < 4; ++i) after[i] = shared[i];
}

// Shared memory seen before and after an asynchronous copy is waited for.
py::tuple async_copy_seen(Floats from, int valid_bytes, int misplaced) {
  Floats before(4), after(4);
  CCP_LAUNCH(copy_and_look, dim3(1), dim3(kWarp), 16, nullptr, from.data(), valid_bytes, misplaced,
             before.mutable_data(), after.mutable_data());
  return py::make_tuple(before, after);
}

// a · b - c · d for each thread, with or without products rounded for themselves.
__global__ void subtract_products(const float* a, const float* b, const float* c, const float* d, float* plain,
                                  float* rounded) {
  const unsigned i = threadIdx.x;
  plain[i] = a[i] * b[i] - c[i] * d[i];
  rounded[i] = generic::rounded_product(a[i], b[i]) - generic::rounded_product(c[i], d[i]);
}

py::tuple differences_of_products(Floats a, Floats b, Floats c, Floats d) {
  Floats plain(kWarp), rounded(kWarp);
  CCP_LAUNCH(subtract_products, dim3(1), dim3(kWarp), 0, nullptr, a.data(), b.data(), c.data(), d.data(),
             plain.mutable_data(), rounded.mutable_data());
  return py::make_tuple(plain, rounded);
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
  m.def("mma16", &mma16_of_lanes, py::arg("a"), py::arg("b"), py::arg("d"), py::arg("dtype"));
  m.def("load_matrices", &matrices_of_lanes, py::arg("matrices"), py::arg("transposed"), py::arg("stride") = 16,
        py::arg("misplaced") = 0);
  m.def("no_blocks", [] { CCP_LAUNCH(wait_for_each_other, dim3(0), dim3(kWarp), 0, nullptr, ); });
  m.def("async_copy", &async_copy_seen, py::arg("source"), py::arg("valid_bytes"), py::arg("misplaced") = 0);
  m.def("differences_of_products", &differences_of_products);
  m.def("reversed", &reversed);
  m.def("overrun", [] { CCP_LAUNCH(write_behind, dim3(1), dim3(kWarp), kWarp - 1, nullptr, ); });
  m.def("deadlock", [] { CCP_LAUNCH(wait_for_each_other, dim3(1), dim3(2 * kWarp), 0, nullptr, ); });
}

}  // namespace emu
}  // namespace ccp
