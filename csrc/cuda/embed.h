// The beginning of a decode step: tokens to rows of the embedding.
#pragma once

#include <cstdint>

#include "cuda/runtime.h"

namespace dive::cuda {

struct EmbedArguments {
  const void* embedding = nullptr;  // of the model's dtype
  std::int64_t stride = 0;
  std::int64_t vocabulary = 0;
  const std::int64_t* tokens = nullptr;  // [count]; outside of the vocabulary: taken as 0
  float scale = 1;
  void* residual = nullptr;  // [count, width]
  int width = 0;
};
void run_embed(const Queue& queue, DType dtype, const EmbedArguments& arguments, int count);

// Whether this build has kernels for the current device: all are compiled for the same GPUs.
bool compiled_for_current_device();

}  // namespace dive::cuda
