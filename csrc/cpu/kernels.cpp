#include "cpu/decode_kernels.h"

#include <cmath>

#include "cpu/x86.h"

namespace dive::cpu {

const DecodeKernels& decode_kernels(Isa isa, DType model) {
  switch (isa) {
#if DIVE_X86
    case Isa::avx2: return avx2::decode_kernels(model);
    case Isa::avx512: return avx512::decode_kernels(model);
    case Isa::avx512_bf16: return avx512_bf16::decode_kernels(model);
#endif
    default: return scalar::decode_kernels(model);
  }
}

void norm_head(const HeadNorm& norm, float* head, std::int64_t width) {
  float squares = 0;
  for (std::int64_t i = 0; i < width; ++i) squares += head[i] * head[i];
  const float inverse_rms = 1.0f / std::sqrt(squares / static_cast<float>(width) + norm.eps);
  const float plus = norm.plus_one ? 1.0f : 0.0f;
  if (norm.dtype == DType::f32) {
    const auto* const weight = static_cast<const float*>(norm.weight);
    for (std::int64_t i = 0; i < width; ++i) head[i] *= inverse_rms * (plus + weight[i]);
  } else {
    const auto* const weight = static_cast<const BFloat16*>(norm.weight);
    for (std::int64_t i = 0; i < width; ++i) head[i] *= inverse_rms * (plus + to_float(weight[i]));
  }
}

void rotate_head(const float* cosines, const float* sines, std::int64_t half, float* head) {
  float* const second = head + half;
  for (std::int64_t i = 0; i < half; ++i) {
    const float a = head[i], b = second[i];
    head[i] = a * cosines[i] - b * sines[i];
    second[i] = b * cosines[i] + a * sines[i];
  }
}

}  // namespace dive::cpu
