#include "cuda/predict.h"

#include "../backend.h"

namespace dive::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;

// As torch.argmax: the first of equals, and a NaN is larger than any number.
struct Best {
  float value;
  std::int64_t at;  // -1: nothing yet

  __device__ void take(float other, std::int64_t other_at) {
    if (other_at < 0) return;
    const bool nan = value != value, other_nan = other != other;
    const bool equal = value == other || (nan && other_nan);
    const bool larger = (other > value && !nan) || (other_nan && !nan);
    if (at < 0 || larger || (equal && other_at < at)) {
      value = other;
      at = other_at;
    }
  }
  __device__ void take_warp() {
    for (int distance = 16; distance > 0; distance /= 2) {
      const float other = __shfl_xor_sync(kFullWarp, value, distance);
      const int low = __shfl_xor_sync(kFullWarp, static_cast<int>(at), distance);
      take(other, low);
    }
  }
};

template <class T>
__global__ void __launch_bounds__(kThreads, 1) predict(const PredictArguments a) {
  DIVE_SHARED(shared);
  float* const values = reinterpret_cast<float*>(shared);  // [kWarps]
  int* const indices = reinterpret_cast<int*>(values + kWarps);
  int* const last = indices + kWarps;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  let_next_start();
  wait_for_previous();

  float* const logits = a.logits + static_cast<std::int64_t>(blockIdx.y) * a.vocabulary;
  Best best{0, -1};
  for (std::int64_t i = blockIdx.x * kThreads + threadIdx.x; i < a.vocabulary;
       i += static_cast<std::int64_t>(gridDim.x) * kThreads) {
    float x = rounded<T>(logits[i]);
    if (a.softcap > 0) {  // rounded after every operation, as separate operators round
      x = rounded<T>(x / a.softcap);
      x = rounded<T>(tanhf(x));
      x = rounded<T>(x * a.softcap);
    }
    logits[i] = x;
    best.take(x, i);
  }
  best.take_warp();
  if (lane == 0) {
    values[warp] = best.value;
    indices[warp] = static_cast<int>(best.at);
  }
  __syncthreads();
  float* const block_values = a.best + blockIdx.y * kPredictBlocks;
  std::int64_t* const block_indices = a.best_at + blockIdx.y * kPredictBlocks;
  if (threadIdx.x == 0) {
    for (int w = 1; w < kWarps; ++w) best.take(values[w], indices[w]);
    block_values[blockIdx.x] = best.value;
    block_indices[blockIdx.x] = best.at;
    *last = count_arrival(a.arrived + blockIdx.y) + 1 == gridDim.x;
  }
  __syncthreads();
  if (*last == 0 || warp != 0) return;
  best = {0, -1};
  for (unsigned b = lane; b < gridDim.x; b += kWarp) best.take(block_values[b], block_indices[b]);
  best.take_warp();
  // where all are the same the first is the largest, and seldom does one of the next equal it
  bool distinct = best.at != 0 || a.vocabulary == 1;
  for (std::int64_t i = 0; !distinct && i < a.vocabulary; i += kWarp) {
    const bool other = i + lane < a.vocabulary && logits[i + lane] != best.value;
    distinct = __any_sync(kFullWarp, other);
  }
  if (lane != 0) return;
  // x - x is 0 for finite x alone
  const bool finite = best.value - best.value == 0.0f;
  a.next[blockIdx.y] = distinct && finite ? best.at : kNoToken;
  a.arrived[blockIdx.y] = 0;
  ++a.lengths[a.slots[blockIdx.y]];
  ++a.positions[a.slots[blockIdx.y]];
}

template <class T>
void run(const Queue& queue, const PredictArguments& a, int count) {
  Shape shape;
  const std::int64_t blocks = (a.vocabulary + kThreads - 1) / kThreads;
  const std::int64_t most = count <= 4 ? kPredictBlocks : kPredictBlocks / 4;
  shape.grid =
      dim3(static_cast<unsigned>(blocks < most ? blocks : most), static_cast<unsigned>(count));
  shape.threads = kThreads;
  shape.shared = (2 * kWarps + 1) * sizeof(float);
  launch(queue, shape, predict<T>, a);
}

}  // namespace

void run_predict(const Queue& queue, DType dtype, const PredictArguments& a, int count) {
  switch (dtype) {
    case DType::f32: return run<float>(queue, a, count);
    case DType::bf16: return run<BFloat16>(queue, a, count);
    case DType::f16: return run<Half>(queue, a, count);
  }
}

}  // namespace dive::cuda
