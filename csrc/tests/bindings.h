// What a build of the module for tests has besides dive._C's own; one such build has one
// definition.
#pragma once

#include <pybind11/pybind11.h>

namespace dive {

void bind_tests(pybind11::module_& module);

}  // namespace dive
