// AVX-512 with its bfloat16 dot product: two products per instruction, summed in float32.
#include "cpu/kernels.h"
#include "cpu/x86.h"

#if DIVE_X86

#include <immintrin.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <type_traits>

#define DIVE_TARGET \
  __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma,f16c")))
#define DIVE_INLINE DIVE_TARGET inline __attribute__((always_inline))
#define DIVE_HAS_BF16_DOT 1

namespace dive::cpu::avx512_bf16 {

#include "cpu/vec_avx512.h"

constexpr int kBatchTile = 4;
constexpr int kRowTile = 6;
constexpr int kStreams = 4;
constexpr int kHeadTile = 4;

// 32 bfloat16; through memcpy since the intrinsics have no load of this type.
DIVE_INLINE __m512bh load32(const BFloat16* from) {
  __m512bh value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

DIVE_INLINE __m512bh load32(const BFloat16* from, __mmask32 mask) {
  const __m512i bits = _mm512_maskz_loadu_epi16(mask, from);
  __m512bh value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// `rows` x `batch` products of bfloat16 with bfloat16.
template <class W, int rows, int batch>
DIVE_TARGET inline void tile(const BFloat16* weight, std::int64_t stride, const BFloat16* x,
                             std::int64_t x_stride, std::int64_t columns,
                             float (&dots)[rows][batch]) {
  constexpr int chains = rows * batch >= 8 ? 1 : rows * batch >= 4 ? 2 : 4;
  __m512 sums[rows][batch][chains];
  for (auto& row : sums) {
    for (auto& one : row) {
      for (auto& sum : one) sum = _mm512_setzero_ps();
    }
  }
  std::int64_t i = 0;
  for (; i + chains * 32 <= columns; i += chains * 32) {
    for (int c = 0; c < chains; ++c) {
      __m512bh in[batch];
      for (int b = 0; b < batch; ++b) in[b] = load32(x + b * x_stride + i + c * 32);
      for (int r = 0; r < rows; ++r) {
        prefetch_weight(weight + r * stride + i + c * 32);
        const __m512bh w = load32(weight + r * stride + i + c * 32);
        for (int b = 0; b < batch; ++b) {
          sums[r][b][c] = _mm512_dpbf16_ps(sums[r][b][c], w, in[b]);
        }
      }
    }
  }
  for (; i < columns; i += 32) {
    const std::int64_t rest = columns - i;
    const auto mask = rest >= 32 ? ~__mmask32{0} : static_cast<__mmask32>((1u << rest) - 1u);
    for (int r = 0; r < rows; ++r) {
      const __m512bh w = load32(weight + r * stride + i, mask);
      for (int b = 0; b < batch; ++b) {
        sums[r][b][0] = _mm512_dpbf16_ps(sums[r][b][0], w, load32(x + b * x_stride + i, mask));
      }
    }
  }
  for (int r = 0; r < rows; ++r) {
    for (int b = 0; b < batch; ++b) {
      __m512 total = sums[r][b][0];
      for (int c = 1; c < chains; ++c) total = _mm512_add_ps(total, sums[r][b][c]);
      dots[r][b] = _mm512_reduce_add_ps(total);
    }
  }
}

// dots[r] = down[r] . row, two products per instruction, summed in float32. The row came from a
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

#include "cpu/steer_body.h"

#include "cpu/decode_body.h"

}  // namespace dive::cpu::avx512_bf16

#endif  // DIVE_X86
