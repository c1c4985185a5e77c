#include "kernels/cuda/nearest_references.h"

#include <pybind11/stl.h>

#include <string>

#include "host_emu/bindings.h"
#include "host_emu/names.h"
#include "host_emu/scratch.h"

namespace py = pybind11;

namespace ccp {
namespace emu {

namespace {

// Addresses, as torch's tensors tell them; numpy has no bfloat16.
cuda::Side side_at(uintptr_t data, const std::string& dtype, int64_t count) {
  return {reinterpret_cast<const void*>(data), dtype_named(dtype), count, nullptr, 1, 0};
}

void run(uintptr_t anchors, const std::string& anchors_dtype, int64_t m, uintptr_t references,
         const std::string& references_dtype, int64_t n, int64_t dim, int64_t k, const std::string& normalize,
         bool exclude_diagonal, bool precise, int multiprocessors, uintptr_t indices, uintptr_t distances) {
  const cuda::NearestReferencesProblem problem{side_at(anchors, anchors_dtype, m),
                                               side_at(references, references_dtype, n),
                                               dim,
                                               k,
                                               normalize_named(normalize),
                                               exclude_diagonal,
                                               precise ? Products::kThree : Products::kOne,
                                               multiprocessors,
                                               reinterpret_cast<int64_t*>(indices),
                                               reinterpret_cast<float*>(distances)};
  GuardedScratch scratch(cuda::nearest_references_workspace_bytes(problem));
  cuda::nearest_references(problem, scratch.data(), nullptr);
  scratch.check();
}

}  // namespace

void bind_nearest_references(py::module_& m) {
  m.def("nearest_references", &run, py::arg("anchors"), py::arg("anchors_dtype"), py::arg("m"), py::arg("references"),
        py::arg("references_dtype"), py::arg("n"), py::arg("dim"), py::arg("k"), py::arg("normalize"),
        py::arg("exclude_diagonal"), py::arg("precise"), py::arg("multiprocessors"), py::arg("indices"),
        py::arg("distances"));
}

}  // namespace emu
}  // namespace ccp
