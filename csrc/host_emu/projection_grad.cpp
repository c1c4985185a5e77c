#include "kernels/cuda/projection_grad.h"

#include <pybind11/stl.h>

#include <limits>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "host_emu/bindings.h"
#include "host_emu/names.h"
#include "kernels/cuda/projection_grad/table.h"

namespace py = pybind11;

namespace ccp {
namespace emu {
namespace {

using Array = std::pair<uintptr_t, std::string>;  // address and torch's name for the type: numpy has no bfloat16

// tensors: (grad, param, previous, numel); a grad at address 0 is none.
double projection_grad(const std::vector<std::tuple<Array, Array, Array, int64_t>>& tensors, double lam,
                       const std::string& penalty_dtype) {
  std::vector<ProjectionTensor> list;
  for (const auto& [grad, param, previous, numel] : tensors)
    list.push_back({reinterpret_cast<void*>(grad.first), reinterpret_cast<const void*>(param.first),
                    reinterpret_cast<const void*>(previous.first), dtype_named(grad.second), dtype_named(param.second),
                    dtype_named(previous.second), numel});
  std::vector<double> chunk_sums(size_t(cuda::projection_grad_chunks(list.data(), int64_t(list.size()))),
                                 std::numeric_limits<double>::quiet_NaN());
  double wide = std::numeric_limits<double>::quiet_NaN();
  float narrow = std::numeric_limits<float>::quiet_NaN();
  const bool is_wide = dtype_named(penalty_dtype) == Dtype::kFloat64;
  cuda::projection_grad({list.data(), int64_t(list.size()), lam, chunk_sums.data(),
                         is_wide ? static_cast<void*>(&wide) : static_cast<void*>(&narrow), dtype_named(penalty_dtype)},
                        nullptr);
  return is_wide ? wide : double(narrow);
}

// (tensor, first element, elements, place of its sum) of the chunk that a block of a launch over tensors of these sizes
// does, without the tensors: they may be larger than memory.
std::tuple<int64_t, int64_t, int, int64_t> projection_chunk(const std::vector<int64_t>& numels, uint32_t block) {
  cuda::projection::Table table;
  table.clear();
  int64_t sums = 0;
  for (const int64_t numel : numels) {
    if (table.is_full()) throw std::invalid_argument("numels: expected no more than a launch takes");
    table.add({nullptr, nullptr, nullptr, {}, {}, {}, numel}, sums);
    sums += cuda::projection::chunks_of(numel);
  }
  const cuda::projection::Chunk chunk = chunk_of(table, block);
  return {&chunk.entry - table.entries, chunk.begin, chunk.n, chunk.sum};
}

}  // namespace

void bind_projection_grad(py::module_& m) {
  m.def("projection_grad", &projection_grad);
  m.def("projection_chunk", &projection_chunk);
}

}  // namespace emu
}  // namespace ccp
