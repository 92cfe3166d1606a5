// The copy of keys and values of another library into the cache.
#pragma once

#include <cstdint>

#include "cuda/runtime.h"

namespace dive::cuda {

// Copies keys and values [kv heads, count, width] to the tokens from `first` on.
struct CopyCacheArguments {
  const void* source[2] = {};
  std::int64_t head_stride[2] = {};
  std::int64_t token_stride[2] = {};
  void* cache[2] = {};  // of the layer and the slot, [kv heads, cells, width]
  std::int64_t first = 0;
  int count = 0;
  int cells = 0;
  int kv_heads = 0;
  int width = 0;
};
void run_copy_cache(const Queue& queue, DType dtype, const CopyCacheArguments& arguments);

}  // namespace dive::cuda
