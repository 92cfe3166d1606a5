// How many physical cores there are to work on.
#pragma once

namespace dive::cpu {

// Cores that this process may run on now, two hardware threads of one core counted once; at
// least 1.
int physical_cores();

}  // namespace dive::cpu
