// AVX-512 with its bfloat16 dot product, for a bfloat16 stream with bfloat16 steering weights.
#include "cpu/x86.h"

#if DIVE_X86

#include <immintrin.h>

#include <cmath>
#include <cstring>
#include <type_traits>

#include "cpu/steer_step.h"

#define DIVE_TARGET \
  __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma,f16c")))
#define DIVE_INLINE DIVE_TARGET inline __attribute__((always_inline))
#define DIVE_HAS_BF16_DOT 1

namespace dive::cpu::avx512_bf16 {

#include "cpu/vec_avx512.h"

// 32 bfloat16; through memcpy since the intrinsics have no load of this type.
DIVE_INLINE __m512bh load32(const BFloat16* from) {
  __m512bh value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

// dots[r] = down[r] . row, two products an instruction, summed in float32. The row came from a
// bfloat16 stream, so that `short_row` holds it exactly.
DIVE_TARGET void down_products_bf16(const PackedSteering& steering, const float* row,
                                    BFloat16* short_row, float* dots) {
  constexpr std::int64_t group = PackedSteering::kGroup, panel = PackedSteering::kPanel;
  const std::int64_t padded = padded_width(steering.width());
  for (std::int64_t i = 0; i < padded; i += 16) Vec::load(row + i).store(short_row + i);
  const BFloat16* weights = static_cast<const BFloat16*>(steering.down());
  for (std::int64_t r = 0; r < steering.padded_rank(); r += group) {
    __m512 sums[group][2];
    for (auto& pair : sums) pair[0] = pair[1] = _mm512_setzero_ps();
    for (std::int64_t i = 0; i < padded; i += panel, weights += group * panel) {
      const __m512bh low = load32(short_row + i), high = load32(short_row + i + 32);
      for (int g = 0; g < group; ++g) {
        sums[g][0] = _mm512_dpbf16_ps(sums[g][0], load32(weights + g * panel), low);
        sums[g][1] = _mm512_dpbf16_ps(sums[g][1], load32(weights + g * panel + 32), high);
      }
    }
    for (int g = 0; g < group; ++g) {
      dots[r + g] = _mm512_reduce_add_ps(_mm512_add_ps(sums[g][0], sums[g][1]));
    }
  }
}

#include "cpu/steer_step_body.h"

}  // namespace dive::cpu::avx512_bf16

#endif  // DIVE_X86
