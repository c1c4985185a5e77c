#include "kernels/cuda/farthest_points.h"

#include <string>

#include "host_emu/bindings.h"
#include "host_emu/names.h"
#include "host_emu/scratch.h"
#include "kernels/cuda/farthest_points/layout.h"

namespace py = pybind11;

namespace ccp {
namespace emu {
namespace {

using cuda::FarthestPointsPlan;
using cuda::FarthestPointsProblem;

// Addresses, as torch's tensors tell them; numpy has no bfloat16.
struct Vectors {
  uintptr_t data;
  std::string dtype;
  int64_t rows;
  uintptr_t offsets;

  cuda::RaggedVectors get() const {
    return {reinterpret_cast<const void*>(data), dtype_named(dtype), rows, reinterpret_cast<const int64_t*>(offsets)};
  }
};

// In scratch memory full of `poison`, whose ends must stay as they were; or in some given.
void run(const FarthestPointsProblem& problem, const FarthestPointsPlan& plan, uintptr_t workspace,
         unsigned char poison) {
  if (workspace) {
    cuda::farthest_points(problem, plan, reinterpret_cast<void*>(workspace), nullptr);
    return;
  }
  GuardedScratch scratch(cuda::farthest_points_workspace_bytes(problem, plan), poison);
  cuda::farthest_points(problem, plan, scratch.data(), nullptr);
  scratch.check();
}

}  // namespace

void bind_farthest_points(py::module_& m) {
  py::class_<Vectors>(m, "RaggedVectors")
      .def(py::init<uintptr_t, std::string, int64_t, uintptr_t>(), py::arg("data"), py::arg("dtype"), py::arg("rows"),
           py::arg("offsets"));
  py::class_<FarthestPointsPlan>(m, "FarthestPointsPlan")
      .def(py::init<int, int64_t, int64_t, int64_t>(), py::arg("segments_per_block"), py::arg("shared_bytes"),
           py::arg("large_elements"), py::arg("rows_per_chunk"))
      .def_readwrite("segments_per_block", &FarthestPointsPlan::segments_per_block)
      .def_readwrite("shared_bytes", &FarthestPointsPlan::shared_bytes)
      .def_readwrite("large_elements", &FarthestPointsPlan::large_elements)
      .def_readwrite("rows_per_chunk", &FarthestPointsPlan::rows_per_chunk)
      .def_readonly_static("NONE", &FarthestPointsPlan::kNone);
  py::class_<FarthestPointsProblem>(m, "FarthestPointsProblem")
      .def(py::init([](const Vectors& points, const Vectors& seeds, int64_t segments, int64_t largest_segment,
                       int64_t dim, int64_t k, const std::string& normalize, bool pad, uintptr_t indices,
                       uintptr_t radii) {
             return FarthestPointsProblem{points.get(),
                                          seeds.get(),
                                          segments,
                                          largest_segment,
                                          dim,
                                          k,
                                          normalize_named(normalize),
                                          pad,
                                          reinterpret_cast<int64_t*>(indices),
                                          reinterpret_cast<void*>(radii)};
           }),
           py::arg("points"), py::arg("seeds"), py::arg("segments"), py::arg("largest_segment"), py::arg("dim"),
           py::arg("k"), py::arg("normalize"), py::arg("pad"), py::arg("indices"), py::arg("radii"))
      .def_property("points", nullptr,
                    [](FarthestPointsProblem& p, const Vectors& points) { p.points = points.get(); });
  m.def("plan_farthest_points", &cuda::plan_farthest_points, py::arg("problem"), py::arg("shared_limit"));
  m.def("farthest_points_workspace_bytes", &cuda::farthest_points_workspace_bytes);
  m.def("farthest_points", &run, py::arg("problem"), py::arg("plan"), py::arg("workspace") = 0,
        py::arg("poison") = 0xff);
  // The least that FarthestPointsPlan.shared_bytes may be.
  m.def("farthest_points_least_shared", [](int64_t dim, bool wide) {
    return cuda::k_center::kBestBytes + cuda::k_center::kSeedBatch * cuda::k_center::stride_of(dim) * (wide ? 8 : 4);
  });
}

}  // namespace emu
}  // namespace ccp
