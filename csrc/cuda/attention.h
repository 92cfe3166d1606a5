// [head norms + RoPE + cache append + grouped-query attention over the cache] of one decode step.
//
// A block computes up to four query heads that share keys, of one sequence, over a share of its
// tokens. The last block to finish a group of heads adds up the shares, in a fixed order.
#pragma once

#include <cstdint>

#include "cuda/add_and_norm.h"
#include "cuda/runtime.h"
#include "decoder.h"

namespace dive::cuda {

constexpr int kMaxHeadWidth = 256;

struct AttendArguments {
  const float* heads = nullptr;  // [rows of the step, (query heads + 2 kv heads) * width]
  NormView query_norm, key_norm;
  const float* cosines = nullptr;  // [positions, half]
  const float* sines = nullptr;
  int half = 0;
  void* keys = nullptr;  // the layer's, [slots, kv heads, cells, width]
  void* values = nullptr;
  const int* slots = nullptr;      // the slot of each row
  const int* lengths = nullptr;    // by slot
  const int* positions = nullptr;  // by slot
  int query_heads = 0;
  int kv_heads = 0;
  int width = 0;
  int cells = 0;
  float scale = 1;
  float softcap = 0;
  float norm_eps = 0;
  bool norm_plus_one = false;
  void* out = nullptr;  // of the model's dtype, [rows of the step, query heads * width]
  // of each share the mixed values, [rows of the step, query heads, splits, width], and behind all
  // of these its largest score and sum, [rows of the step, query heads, splits, 2]
  float* shares = nullptr;
  unsigned* arrived = nullptr;  // [rows of the step, groups of heads], 0 between two steps
  int splits = 1;               // shares per sequence, at most
};

// The number of groups of query heads, one per block, and the number of shares of a sequence's
// tokens.
int head_groups(int query_heads, int kv_heads);
int splits_for(int count, int query_heads, int kv_heads, std::int64_t capacity, int processors);

void run_attention(const Queue& queue, DType dtype, const AttendArguments& arguments, int count);

}  // namespace dive::cuda
