#include "cpu/steer_step.h"

#include <cmath>

#include "cpu/x86.h"

namespace dive::cpu {

StepKernel step_kernel(Isa isa, DType stream, DType weights) {
  switch (isa) {
#if DIVE_X86
    case Isa::avx2: return avx2::step_kernel(stream, weights);
    case Isa::avx512: return avx512::step_kernel(stream, weights);
    case Isa::avx512_bf16: return avx512_bf16::step_kernel(stream, weights);
#endif
    default: return scalar::step_kernel(stream, weights);
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

}  // namespace dive::cpu
