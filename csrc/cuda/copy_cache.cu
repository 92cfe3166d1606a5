#include "cuda/copy_cache.h"

#include <algorithm>

namespace dive::cuda {
namespace {

template <class T>
__global__ void copy_cache(const CopyCacheArguments a) {
  wait_for_previous();
  const int head = blockIdx.y, which = blockIdx.z;
  const T* const from = static_cast<const T*>(a.source[which]) + head * a.head_stride[which];
  T* const to =
      static_cast<T*>(a.cache[which]) + static_cast<std::int64_t>(head) * a.cells * a.width;
  for (int t = blockIdx.x; t < a.count; t += gridDim.x) {
    const std::int64_t index = (a.first + t) % a.cells;
    for (int i = threadIdx.x; i < a.width; i += blockDim.x) {
      to[index * a.width + i] = from[t * a.token_stride[which] + i];
    }
  }
}

}  // namespace

void run_copy_cache(const Queue& queue, DType dtype, const CopyCacheArguments& a) {
  Shape shape;
  shape.grid =
      dim3(static_cast<unsigned>(std::min(a.count, 1024)), static_cast<unsigned>(a.kv_heads), 2);
  shape.threads = 64;
  switch (dtype) {
    case DType::f32: return launch(queue, shape, copy_cache<float>, a);
    case DType::bf16: return launch(queue, shape, copy_cache<BFloat16>, a);
    case DType::f16: return launch(queue, shape, copy_cache<Half>, a);
  }
}

}  // namespace dive::cuda
