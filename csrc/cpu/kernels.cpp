#include "cpu/kernels.h"

#include <cmath>

#include "cpu/x86.h"

namespace dive::cpu {

const Kernels& kernels_of(Isa isa, DType model) {
  switch (isa) {
#if DIVE_X86
    case Isa::avx2: return avx2::kernels_of(model);
    case Isa::avx512: return avx512::kernels_of(model);
    case Isa::avx512_bf16: return avx512_bf16::kernels_of(model);
#endif
    default: return scalar::kernels_of(model);
  }
}

void activate(Activation activation, float* values, std::int64_t count) {
  switch (activation) {
    case Activation::silu:
      for (std::int64_t i = 0; i < count; ++i) values[i] /= 1.0f + std::exp(-values[i]);
      break;
    case Activation::gelu:
      for (std::int64_t i = 0; i < count; ++i) {
        values[i] *= 0.5f * (1.0f + std::erf(values[i] * 0.70710678118654752f));
      }
      break;
    case Activation::tanh:
      for (std::int64_t i = 0; i < count; ++i) values[i] = std::tanh(values[i]);
      break;
    case Activation::identity: break;
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
