// `dive._C.Engine`: the decode step as Python sees it.
#pragma once

#include <pybind11/pybind11.h>

namespace dive {

// After `Steering` is known to the module.
void bind_engine(pybind11::module_& module);

}  // namespace dive
