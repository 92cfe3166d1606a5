// [residual add + steering + RMSNorm] of one decode step; csrc/cpu/kernels.h has the formula.
//
// A row is spread over a cluster of up to eight blocks where the GPU has clusters (sm_90 and later)
// and there are up to 64 rows, and over one block elsewhere. The blocks of a row exchange sums of
// squares, and the products of `down` where the row is steered.
#pragma once

#include <cstdint>

#include "../steering.h"
#include "cuda/runtime.h"

namespace dive::cuda {

// The steering of one layer in one slot, in device memory; rank -1: none.
struct SteerView {
  const void* down = nullptr;  // of the model's dtype, [rank, width]
  const void* up = nullptr;    // [rank, width]: transposed
  const float* down_bias = nullptr;
  const float* fixed = nullptr;
  float scale = 0;
  float eps = 0;
  int rank = -1;
  Activation activation = Activation::silu;
  bool norm_preserving = false;
};

struct NormView {
  const void* weight = nullptr;  // null: none
  bool wide = false;             // float32, and not the model's dtype
};

struct AddArguments {
  void* residual = nullptr;     // [rows of the step, width]
  const void* delta = nullptr;  // null: nothing is added
  NormView delta_norm;
  const SteerView* steering = nullptr;  // of slot s at s * steering_stride; or null
  std::int64_t steering_stride = 0;
  const int* slots = nullptr;  // the slot of each
  NormView norm;
  void* out = nullptr;
  float norm_eps = 0;
  bool norm_plus_one = false;
  int width = 0;
  int span = 0;  // columns of a block
  // what is staged in shared memory before the wait, as the launch has capacity for it:
  bool norms_staged = false;
  int staged_rank = -1;  // adapters of up to this rank; -1: none
};

// `max_rank` over all steerings in use; `shared_limit` is a block's shared memory in bytes.
void run_add_and_norm(const Queue& queue, DType dtype, AddArguments arguments, int count,
                      int max_rank, bool clusters, std::size_t shared_limit);

// Whether the device has clusters of blocks and waits between kernels (wait_for_previous), and the
// kernels were compiled with them: PTX of an older architecture, translated when it is loaded, has
// neither.
bool has_clusters(int device);

// Lets the kernels use that much shared memory; once per device, and not during a capture.
void allow_shared_memory(std::size_t bytes);

}  // namespace dive::cuda
