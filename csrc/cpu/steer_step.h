// [residual add + steering + RMSNorm] of one decode step, row by row.
//
// For each row, with `round` to the stream's dtype where transformers rounds:
//   r   = round(residual + delta)                                (residual, where delta is null)
//   r'  = round(r + scale * (up phi(down r/rms(r) + bias) + fixed))   (r, where not steered)
//   out = rmsnorm(r')
// r' replaces the residual. Everything between the roundings is float32.
#pragma once

#include <cstdint>

#include "cpu/aligned.h"
#include "cpu/isa.h"
#include "cpu/steering.h"

namespace dive::cpu {

struct StepArguments {
  std::int64_t rows = 0;
  std::int64_t width = 0;
  void* residual = nullptr;
  std::int64_t residual_stride = 0;  // elements from row to row, as the strides below
  const void* delta = nullptr;       // null: nothing is added
  std::int64_t delta_stride = 0;
  // one for each row, each of the kernel's weight dtype and this width; a null row is not steered,
  // and a null array steers none
  const PackedSteering* const* steerings = nullptr;
  void* out = nullptr;  // null: no norm is taken
  std::int64_t out_stride = 0;
  const void* norm_weight = nullptr;
  DType norm_dtype = DType::f32;  // float32 or the stream's
  float norm_eps = 0;
  // false, as Llama: weight * round(r'/rms);  true, as Gemma: round(r'/rms * (1 + weight))
  bool norm_plus_one = false;
};

// Room for one row; each thread has its own.
class Workspace {
 public:
  void prepare(std::int64_t width) {
    row_.grow(static_cast<std::size_t>(padded_width(width)));
    mixing_.grow(kMaxRank);
    short_row_.grow(static_cast<std::size_t>(padded_width(width)));
  }
  float* row() { return row_.data(); }
  float* mixing() { return mixing_.data(); }
  BFloat16* short_row() { return short_row_.data(); }

 private:
  AlignedBuffer<float> row_;
  AlignedBuffer<float> mixing_;
  AlignedBuffer<BFloat16> short_row_;
};

using StepKernel = void (*)(const StepArguments&, Workspace&);

// The kernel for a stream and packed steering weights (float32 or the stream's dtype).
StepKernel step_kernel(Isa isa, DType stream, DType weights);

namespace scalar {
StepKernel step_kernel(DType stream, DType weights);
}
namespace avx2 {
StepKernel step_kernel(DType stream, DType weights);
}
namespace avx512 {
StepKernel step_kernel(DType stream, DType weights);
}
namespace avx512_bf16 {
StepKernel step_kernel(DType stream, DType weights);
}

// phi of the first `count` numbers, in place.
void activate(Activation activation, float* values, std::int64_t count);

}  // namespace dive::cpu
