#pragma once

#include <string>

namespace dive::cuda::host {

// What the function at an address is called in the source, read from this program's own symbols.
std::string name_of_kernel(const void* function);

}  // namespace dive::cuda::host
