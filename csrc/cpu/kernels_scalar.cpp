// Portable C++: runs anywhere, and is what the vector paths are compared with.
#include "cpu/kernels.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <type_traits>

#define DIVE_TARGET

namespace dive::cpu::scalar {

#include "cpu/vec_scalar.h"

constexpr int kBatchTile = 1;
constexpr int kRowTile = 1;
constexpr int kStreams = 1;
constexpr int kHeadTile = 1;

#include "cpu/steer_body.h"

#include "cpu/decode_body.h"

}  // namespace dive::cpu::scalar
