// SoftTriple's regulariser over numpy arrays.
#include "kernels/cuda/centre_spread.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <limits>
#include <string>
#include <vector>

#include "host_emu/bindings.h"
#include "host_emu/names.h"

namespace py = pybind11;

namespace ccp {
namespace emu {
namespace {

// Sixteen-bit numbers come as their bits.
cuda::CentreSpread problem_of(const py::array& centres, const std::string& dtype) {
  return {centres.data(), dtype_named(dtype), centres.shape(0), centres.shape(1), centres.shape(2)};
}

float centre_spread(const py::array& centres, const std::string& dtype) {
  const cuda::CentreSpread problem = problem_of(centres, dtype);
  std::vector<double> scratch(size_t(cuda::centre_spread_blocks(problem)), std::numeric_limits<double>::quiet_NaN());
  float value = -1;
  cuda::centre_spread(problem, scratch.data(), &value, nullptr);
  return value;
}

py::array centre_spread_backward(float grad, const py::array& centres, const std::string& dtype) {
  py::array gradient(centres.dtype(), {centres.shape(0), centres.shape(1), centres.shape(2)});
  cuda::centre_spread_backward(problem_of(centres, dtype), &grad, gradient.mutable_data(), nullptr);
  return gradient;
}

}  // namespace

void bind_centre_spread(py::module_& m) {
  m.def("centre_spread", &centre_spread);
  m.def("centre_spread_backward", &centre_spread_backward);
}

}  // namespace emu
}  // namespace ccp
