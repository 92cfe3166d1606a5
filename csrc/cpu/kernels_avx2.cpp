// AVX2 with FMA and F16C: 16 registers, of which a vector of 16 floats takes two, so that 4 rows of
// one sequence fill half of them.
#include "cpu/kernels.h"
#include "cpu/x86.h"

#if DIVE_X86

#include <immintrin.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <type_traits>

#define DIVE_TARGET __attribute__((target("avx2,fma,f16c")))
#define DIVE_INLINE DIVE_TARGET inline __attribute__((always_inline))

namespace dive::cpu::avx2 {

#include "cpu/vec_avx2.h"

constexpr int kBatchTile = 1;
constexpr int kRowTile = 4;
constexpr int kStreams = 4;
constexpr int kHeadTile = 1;

#include "cpu/steer_body.h"

#include "cpu/decode_body.h"

}  // namespace dive::cpu::avx2

#endif  // DIVE_X86
