// AVX-512 as servers have had it since 2017 (F, BW, DQ, VL).
#include "cpu/x86.h"

#if DIVE_X86

#include <immintrin.h>

#include <cmath>
#include <cstring>
#include <type_traits>

#include "cpu/steer_step.h"

#define DIVE_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma,f16c")))
#define DIVE_INLINE DIVE_TARGET inline __attribute__((always_inline))

namespace dive::cpu::avx512 {

#include "cpu/vec_avx512.h"

#include "cpu/steer_step_body.h"

}  // namespace dive::cpu::avx512

#endif  // DIVE_X86
