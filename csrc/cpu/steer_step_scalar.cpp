// Portable C++: runs anywhere, and is what the vector paths are compared with.
#include <cmath>
#include <cstring>
#include <type_traits>

#include "cpu/steer_step.h"

#define DIVE_TARGET

namespace dive::cpu::scalar {

#include "cpu/vec_scalar.h"

#include "cpu/steer_step_body.h"

}  // namespace dive::cpu::scalar
