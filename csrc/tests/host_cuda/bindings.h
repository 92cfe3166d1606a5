#pragma once

#include <pybind11/pybind11.h>

namespace dive::cuda::shim {

// shim_settings and shim_counts, in a module whose GPU the host plays.
void bind_shim(pybind11::module_& module);

}  // namespace dive::cuda::shim
