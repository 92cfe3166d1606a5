// `dive._C.Steering`: one layer's steering weights as Python sees them.
#pragma once

#include <pybind11/pybind11.h>

namespace dive {

void bind_steering(pybind11::module_& module);

}  // namespace dive
