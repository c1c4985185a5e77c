// What module.cpp binds, a file per kernel family.
#pragma once

#include <pybind11/pybind11.h>

namespace ccp {
namespace emu {

void bind_centre_spread(pybind11::module_& m);
void bind_farthest_points(pybind11::module_& m);
void bind_nearest_references(pybind11::module_& m);
void bind_primitives(pybind11::module_& m);
void bind_hopper_primitives(pybind11::module_& m);
void bind_projection_grad(pybind11::module_& m);
void bind_similarity_loss(pybind11::module_& m);

}  // namespace emu
}  // namespace ccp
