// The Python module `_emulator`: one function per kernel launcher, over numpy arrays, and the emulator's own controls.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "host_emu/bindings.h"
#include "host_emu/fibers.h"

PYBIND11_MODULE(_emulator, m) {
  m.doc() = "Runs the CUDA kernels' own source on the CPU";
  m.def("set_seed", &ccp::emu::set_seed, "Seeds the order in which threads and blocks run.");
  m.def("barriers_seen", &ccp::emu::barriers_seen, "file:line of every barrier met since forget_barriers().");
  m.def("forget_barriers", &ccp::emu::forget_barriers);
  m.def("leave_out", &ccp::emu::leave_out, "Threads run through this barrier from now on; '' for none.");
  ccp::emu::bind_primitives(m);
  ccp::emu::bind_projection_grad(m);
  ccp::emu::bind_farthest_points(m);
  ccp::emu::bind_nearest_references(m);
  ccp::emu::bind_similarity_loss(m);
  ccp::emu::bind_centre_spread(m);
}
