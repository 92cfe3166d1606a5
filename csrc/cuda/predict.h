// The end of a decode step: logits to tokens.
#pragma once

#include <cstdint>

#include "cuda/runtime.h"

namespace dive::cuda {

// Rounds logits to the model's dtype as transformers does (soft-cap included), takes the first of
// the largest (kNoToken where that is not finite, or all are the same), and increments the
// sequence's length and position.
struct PredictArguments {
  float* logits = nullptr;  // [count, vocabulary]
  std::int64_t vocabulary = 0;
  float softcap = 0;
  std::int64_t* next = nullptr;  // [count]
  const int* slots = nullptr;
  int* lengths = nullptr;    // by slot
  int* positions = nullptr;  // by slot
  // per block its largest; the number of finished blocks, 0 between two steps
  float* best = nullptr;  // [count, kPredictBlocks]
  std::int64_t* best_at = nullptr;
  unsigned* arrived = nullptr;  // [count]
};
constexpr int kPredictBlocks = 128;  // at most; fewer per sequence where there are many
void run_predict(const Queue& queue, DType dtype, const PredictArguments& arguments, int count);

}  // namespace dive::cuda
