// AVX-512 as servers have had it since 2017 (F, BW, DQ, VL).
#include "cpu/kernels.h"
#include "cpu/x86.h"

#if DIVE_X86

#include <immintrin.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <type_traits>

#define DIVE_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma,f16c")))
#define DIVE_INLINE DIVE_TARGET inline __attribute__((always_inline))

namespace dive::cpu::avx512 {

#include "cpu/vec_avx512.h"

constexpr int kBatchTile = 4;
constexpr int kRowTile = 6;
constexpr int kStreams = 4;
constexpr int kHeadTile = 4;

#include "cpu/steer_body.h"

#include "cpu/decode_body.h"

}  // namespace dive::cpu::avx512

#endif  // DIVE_X86
