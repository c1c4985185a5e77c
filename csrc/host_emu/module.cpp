// The Python module `_emulator`: one function per kernel launcher, over numpy arrays, and the emulator's own controls.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "host_emu/bindings.h"
#include "host_emu/fibers.h"
#include "host_emu/tensor_core_sum.h"
#include "host_emu/warpgroups.h"

namespace py = pybind11;

PYBIND11_MODULE(_emulator, m) {
  m.doc() = "Runs the CUDA kernels' own source on the CPU";
  m.def("set_seed", &ccp::emu::set_seed, "Seeds the order in which threads and blocks run.");
  m.def("barriers_seen", &ccp::emu::barriers_seen, "file:line of every barrier met since forget_barriers().");
  m.def("forget_barriers", &ccp::emu::forget_barriers);
  m.def("let_lag", &ccp::emu::let_lag, "A few threads fall far behind the others from now on, or do not.");
  m.def("leave_out", &ccp::emu::leave_out, "Threads run through this barrier from now on; '' for none.");
  m.def("only_end_blocks", &ccp::emu::only_end_blocks,
        "So many first and last blocks of every grid run from now on; 0, 0: all.", py::arg("first"), py::arg("last"));
  m.def(
      "cut_off_sums", [](bool cut_off) { ccp::emu::sums_are_cut_off = cut_off; },
      "Whether sums in tensor cores are cut off from now on instead of rounded.");
  m.def("launches", &ccp::emu::launches, "Of kernels, since the module was loaded.");
  m.def("most_shared_bytes", &ccp::emu::most_shared_bytes, "That a launch has asked for since this was called.");
  m.def("products_side_by_side", &ccp::emu::products_side_by_side,
        "wgmma's, while another warpgroup's were under way.");
  m.def("matrix_loads", &ccp::emu::matrix_loads, "8×8 matrices that ldmatrix has loaded.");
  m.def("matrix_conflicts", &ccp::emu::matrix_conflicts, "Of those, with rows in the same banks.");
  ccp::emu::bind_primitives(m);
  ccp::emu::bind_hopper_primitives(m);
  ccp::emu::bind_projection_grad(m);
  ccp::emu::bind_farthest_points(m);
  ccp::emu::bind_nearest_references(m);
  ccp::emu::bind_similarity_loss(m);
  ccp::emu::bind_centre_spread(m);
}
