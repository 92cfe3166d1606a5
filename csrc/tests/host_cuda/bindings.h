#pragma once

#include <pybind11/pybind11.h>

namespace dive::cuda::host {

// host_settings and host_counts, in a module whose GPU the host plays.
void bind_host_cuda(pybind11::module_& module);

}  // namespace dive::cuda::host
