#include "cuda/embed.h"

namespace dive::cuda {
namespace {

constexpr int kThreads = 256;

template <class T>
__global__ void __launch_bounds__(kThreads) embed(const EmbedArguments a) {
  let_next_start();
  wait_for_previous();
  const std::int64_t token = a.tokens[blockIdx.y];
  const bool known = token >= 0 && token < a.vocabulary;
  const T* const from = static_cast<const T*>(a.embedding) + (known ? token : 0) * a.stride;
  T* const to = static_cast<T*>(a.residual) + static_cast<std::int64_t>(blockIdx.y) * a.width;
  const int i = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  if (i < a.width) to[i] = from_float<T>(to_float(from[i]) * a.scale);
}

}  // namespace

void run_embed(const Queue& queue, DType dtype, const EmbedArguments& a, int count) {
  Shape shape;
  shape.grid = dim3(static_cast<unsigned>((a.width + kThreads - 1) / kThreads),
                    static_cast<unsigned>(count));
  shape.threads = kThreads;
  switch (dtype) {
    case DType::f32: return launch(queue, shape, embed<float>, a);
    case DType::bf16: return launch(queue, shape, embed<BFloat16>, a);
    case DType::f16: return launch(queue, shape, embed<Half>, a);
  }
}

bool compiled_for_current_device() {
  void (*const kernel)(EmbedArguments) = embed<float>;
  cudaFuncAttributes compiled{};
  if (cudaFuncGetAttributes(&compiled, reinterpret_cast<const void*>(kernel)) == cudaSuccess) {
    return true;
  }
  cudaGetLastError();
  return false;
}

}  // namespace dive::cuda
