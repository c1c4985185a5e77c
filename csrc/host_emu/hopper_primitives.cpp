// Kernels that consist of one of Hopper's primitives each, to test the emulator itself.
#include <pybind11/numpy.h>

#include "common/tensor_copy.h"
#include "common/wgmma.h"
#include "host_emu/bindings.h"
#include "host_emu/names.h"

namespace py = pybind11;

namespace ccp {

namespace {

using Floats = py::array_t<float, py::array::c_style>;
using Bits = py::array_t<uint16_t, py::array::c_style>;

constexpr int kMatrixBytes = 64 * 128;

struct ProductSeen {
  const unsigned char *a, *b;  // as they lie in shared memory, 64 rows of 128 bytes each
  int products;                // of 16 each
  bool fenced;
  float *sums, *before, *after;  // [128, 32]
  uint64_t* descriptors;         // [2, 4]
};

template <Dtype dtype>
__global__ void multiply_and_look(const ProductSeen job) {
  CCP_SHARED(bytes);
  for (int i = int(threadIdx.x); i < kMatrixBytes; i += kWarpgroup)
    bytes[i] = job.a[i], bytes[kMatrixBytes + i] = job.b[i];
  __syncthreads();
  WgmmaSums d;
  std::memcpy(d, job.sums + threadIdx.x * 32, sizeof(d));
  const uint64_t a = matrix_at(bytes), b = matrix_at(bytes + kMatrixBytes);
  if (job.fenced) wgmma_fence();
  for (int k = 0; k < job.products; ++k) {
    wgmma<dtype>(d, a + uint64_t(k) * 2, b + uint64_t(k) * 2);
    if (threadIdx.x == 0) job.descriptors[k] = a + uint64_t(k) * 2, job.descriptors[4 + k] = b + uint64_t(k) * 2;
  }
  wgmma_commit();
  std::memcpy(job.before + threadIdx.x * 32, d, sizeof(d));
  wgmma_wait<0>();
  std::memcpy(job.after + threadIdx.x * 32, d, sizeof(d));
}

// a and b: what lies in shared memory, [64, 64] numbers of 16 bits; sums [128, 32]. Returns what the lanes see before
// and after they wait, and the descriptors.
py::tuple wgmma_of_lanes(Bits a, Bits b, Floats sums, const std::string& dtype, int products, bool fenced) {
  Floats before(std::vector<int64_t>{kWarpgroup, 32}), after(std::vector<int64_t>{kWarpgroup, 32});
  py::array_t<uint64_t> descriptors(std::vector<int64_t>{2, 4});
  const ProductSeen job{reinterpret_cast<const unsigned char*>(a.data()),
                        reinterpret_cast<const unsigned char*>(b.data()),
                        products,
                        fenced,
                        sums.mutable_data(),
                        before.mutable_data(),
                        after.mutable_data(),
                        descriptors.mutable_data()};
  const auto run = [&](auto kernel) { CCP_LAUNCH(kernel, dim3(1), dim3(kWarpgroup), 2 * kMatrixBytes, nullptr, job); };
  emu::dtype_named(dtype) == Dtype::kBFloat16 ? run(multiply_and_look<Dtype::kBFloat16>)
                                              : run(multiply_and_look<Dtype::kFloat16>);
  return py::make_tuple(before, after, descriptors);
}

struct CopySeen {
  TensorMap map;
  int column, row, misplaced, expected;
  bool fenced;
  uint16_t *before, *after;  // [rows of the box, 64]
};

__global__ void copy_box_and_look(const CopySeen job) {
  CCP_SHARED(bytes);
  if (threadIdx.x != 0) return;
  const size_t box = size_t(job.map.box_rows) * kBoxColumns * 2;
  auto* barrier = reinterpret_cast<Mbarrier*>(bytes + 2 * box);
  mbarrier_init(barrier, 1);
  if (job.fenced) mbarrier_fence();
  mbarrier_expect(barrier, unsigned(job.expected));
  copy_box(bytes + job.misplaced, job.map, job.column, job.row, barrier);
  std::memcpy(job.before, bytes, box);
  mbarrier_wait(barrier, 0);
  std::memcpy(job.after, bytes, box);
}

// Shared memory before and after a box of a matrix [rows, columns] of 16-bit numbers is waited for.
py::tuple box_seen(Bits matrix, int box_rows, int column, int row, bool fenced, int misplaced, int bytes_off) {
  Bits before(std::vector<int64_t>{box_rows, kBoxColumns}), after(std::vector<int64_t>{box_rows, kBoxColumns});
  const int box = box_rows * kBoxColumns * 2;
  const TensorMap map{reinterpret_cast<const unsigned char*>(matrix.data()), matrix.shape(1), matrix.shape(0),
                      box_rows};
  const CopySeen job{map, column, row, misplaced, box + bytes_off, fenced, before.mutable_data(), after.mutable_data()};
  CCP_LAUNCH(copy_box_and_look, dim3(1), dim3(kWarp), size_t(2 * box) + 8, nullptr, job);
  return py::make_tuple(before, after);
}

// The first warp hands numbers to the second, one buffer again and again.
__global__ void hand_over(const int* in, int rounds, int arrivals, int* out) {
  CCP_SHARED(bytes);
  auto* barriers = reinterpret_cast<Mbarrier*>(bytes);  // filled, emptied
  int* buffer = reinterpret_cast<int*>(bytes + 2 * sizeof(Mbarrier));
  const int lane = int(threadIdx.x) % kWarp;
  if (threadIdx.x == 0) {
    mbarrier_init(&barriers[0], unsigned(arrivals));
    mbarrier_init(&barriers[1], kWarp);
  }
  __syncthreads();
  for (int round = 0; round < rounds; ++round) {
    const unsigned parity = unsigned(round) % 2;
    if (threadIdx.x < kWarp) {
      mbarrier_wait(&barriers[1], parity ^ 1);
      buffer[lane] = in[round * kWarp + lane];
      mbarrier_arrive(&barriers[0]);
    } else {
      mbarrier_wait(&barriers[0], parity);
      out[round * kWarp + lane] = buffer[kWarp - 1 - lane];
      mbarrier_arrive(&barriers[1]);
    }
  }
}

py::array_t<int> handed_over(py::array_t<int, py::array::c_style> in, int arrivals) {
  py::array_t<int> out(in.size());
  CCP_LAUNCH(hand_over, dim3(1), dim3(2 * kWarp), 2 * sizeof(Mbarrier) + kWarp * sizeof(int), nullptr, in.data(),
             int(in.size()) / kWarp, arrivals, out.mutable_data());
  return out;
}

}  // namespace

namespace emu {

void bind_hopper_primitives(py::module_& m) {
  m.def("wgmma", &wgmma_of_lanes, py::arg("a"), py::arg("b"), py::arg("sums"), py::arg("dtype"), py::arg("products"),
        py::arg("fenced") = true, "(before, after, descriptors)");
  m.def("copy_box", &box_seen, py::arg("matrix"), py::arg("box_rows"), py::arg("column"), py::arg("row"),
        py::arg("fenced") = true, py::arg("misplaced") = 0, py::arg("bytes_off") = 0, "(before, after)");
  m.def("handed_over", &handed_over, py::arg("numbers"), py::arg("arrivals") = kWarp);
}

}  // namespace emu
}  // namespace ccp
