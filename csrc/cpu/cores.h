// The number of physical cores.
#pragma once

namespace dive::cpu {

// The cores that this process may run on now; two hardware threads of a core count once. At
// least 1.
int physical_cores();

}  // namespace dive::cpu
