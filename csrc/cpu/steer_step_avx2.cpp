// AVX2 with FMA and F16C: a vector of 16 is two registers of 8.
#include "cpu/x86.h"

#if DIVE_X86

#include <immintrin.h>

#include <cmath>
#include <cstring>
#include <type_traits>

#include "cpu/steer_step.h"

#define DIVE_TARGET __attribute__((target("avx2,fma,f16c")))
#define DIVE_INLINE DIVE_TARGET inline __attribute__((always_inline))

namespace dive::cpu::avx2 {

#include "cpu/vec_avx2.h"

#include "cpu/steer_step_body.h"

}  // namespace dive::cpu::avx2

#endif  // DIVE_X86
