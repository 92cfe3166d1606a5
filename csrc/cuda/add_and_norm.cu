#include "cuda/add_and_norm.h"

#include <algorithm>
#include <array>

namespace dive::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kMaxRank = static_cast<int>(cpu::Steering::kMaxRank);
constexpr int kClusterBlocks = 8;
constexpr int kSums = 4;  // sums over a row, each with a place of its own in shared memory

// Shared memory of a block, in floats: the row's columns, room for each sum over the cluster, the
// products with `down`, and the mixing weights; then `staged_rank` rows of down and of up.
struct Layout {
  float* row;
  float* sums;    // [kSums][kWarps + 1]
  float* dots;    // [kMaxRank]
  float* mixing;  // [kMaxRank]
  unsigned char* staged;

  __device__ Layout(unsigned char* shared, int span) {
    row = reinterpret_cast<float*>(shared);
    sums = row + span;
    dots = sums + kSums * (kWarps + 1);
    mixing = dots + kMaxRank;
    staged = shared + bytes(span);
  }
  __host__ __device__ static std::size_t bytes(int span) {
    const std::size_t floats = span + kSums * (kWarps + 1) + 2 * kMaxRank;
    return (floats * sizeof(float) + 15) / 16 * 16;
  }
};

// The sum of every thread's value over the cluster, always added in the same order, and the same in
// every thread. `place` [kWarps + 1] is written once in a kernel.
template <int kBlocks>
__device__ float cluster_total(float value, float* place) {
  value = warp_sum(value);
  if (threadIdx.x % kWarp == 0) place[threadIdx.x / kWarp] = value;
  __syncthreads();
  if (threadIdx.x == 0) {
    float sum = 0;
    for (int w = 0; w < kWarps; ++w) sum += place[w];
    place[kWarps] = sum;
  }
  cluster_sync();
  float parts[kBlocks];
#pragma unroll
  for (int b = 0; b < kBlocks; ++b) parts[b] = *shared_of_block(place + kWarps, b);
  float total = 0;
#pragma unroll
  for (int b = 0; b < kBlocks; ++b) total += parts[b];
  return total;
}

template <class T>
__device__ float norm_weight(const NormView& norm, int column) {
  return norm.wide ? static_cast<const float*>(norm.weight)[column]
                   : to_float(static_cast<const T*>(norm.weight)[column]);
}

// As transformers rounds: Llama weight * round(x / rms), Gemma round(x / rms * (1 + weight)).
template <class T>
__device__ float normed(float x, float inverse_rms, float weight, bool plus_one) {
  if (plus_one) return rounded<T>(x * inverse_rms * (1.0f + weight));
  return rounded<T>(rounded<T>(x * inverse_rms) * weight);
}

__device__ float activated(cpu::Activation activation, float x) {
  switch (activation) {
    case cpu::Activation::silu: return silu(x);
    case cpu::Activation::gelu: return gelu(x);
    case cpu::Activation::tanh: return tanhf(x);
    case cpu::Activation::identity: break;
  }
  return x;
}

// dots[r] = down[r] . row over this block's columns: two ranks a warp at once.
template <class T>
__device__ void down_products(const T* down, std::int64_t stride, int rank, const float* row,
                              int columns, float* dots) {
  const int lane = threadIdx.x % kWarp;
  for (int r = threadIdx.x / kWarp; r < rank; r += 2 * kWarps) {
    const bool two = r + kWarps < rank;
    const T* const first = down + r * stride;
    const T* const second = two ? first + kWarps * stride : first;
    float sum = 0, other = 0;
    for (int i = 8 * lane; i < columns; i += 8 * kWarp) {
      float x[8], w[8];
      unpack(load_eight(row + i), x);
      unpack(load_eight(first + i), w);
#pragma unroll
      for (int k = 0; k < 8; ++k) sum = fmaf(w[k], x[k], sum);
      unpack(load_eight(second + i), w);
#pragma unroll
      for (int k = 0; k < 8; ++k) other = fmaf(w[k], x[k], other);
    }
    sum = warp_sum(sum);
    other = warp_sum(other);
    if (lane == 0) {
      dots[r] = sum;
      if (two) dots[r + kWarps] = other;
    }
  }
}

// sums += up mixing for two columns, with eight ranks' loads under way.
template <class T>
__device__ __forceinline__ void up_products(const T* up, std::int64_t stride, int rank,
                                            const float* mixing, float (&sums)[2]) {
  struct alignas(2 * sizeof(T)) Two {
    T first, second;
  };
  int r = 0;
  for (; r + 8 <= rank; r += 8) {
    Two weights[8];
#pragma unroll
    for (int k = 0; k < 8; ++k) weights[k] = *reinterpret_cast<const Two*>(up + (r + k) * stride);
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      sums[0] = fmaf(to_float(weights[k].first), mixing[r + k], sums[0]);
      sums[1] = fmaf(to_float(weights[k].second), mixing[r + k], sums[1]);
    }
  }
  for (; r < rank; ++r) {
    const Two weights = *reinterpret_cast<const Two*>(up + r * stride);
    sums[0] = fmaf(to_float(weights.first), mixing[r], sums[0]);
    sums[1] = fmaf(to_float(weights.second), mixing[r], sums[1]);
  }
}

template <class T, int kBlocks>
__global__ void __launch_bounds__(kThreads, 1) add_and_norm(const AddArguments a) {
  DIVE_SHARED(shared);
  const Layout place(shared, a.span);
  const int begin = static_cast<int>(cluster_rank()) * a.span;
  const int columns = min(a.span, a.width - begin);  // of this block; negative where it has none
  const std::int64_t offset = static_cast<std::int64_t>(blockIdx.y) * a.width + begin;
  const float width = static_cast<float>(a.width);

  let_next_start();

  // what no kernel of the step writes: before the wait
  SteerView view;
  if (a.steering != nullptr) view = a.steering[a.rows[blockIdx.y] * a.steering_stride];
  const T* down = static_cast<const T*>(view.down) + begin;
  const T* up = static_cast<const T*>(view.up) + begin;
  std::int64_t stride = a.width;
  if (view.rank > 0 && view.rank <= a.staged_rank) {
    T* const staged = reinterpret_cast<T*>(place.staged);
    const int eights = max(columns, 0) / 8, all = view.rank * eights;
    for (int i = threadIdx.x; i < all; i += kThreads) {
      const int r = i / eights, column = i % eights * 8;
      *reinterpret_cast<Eight<T>*>(staged + r * a.span + column) =
          load_eight(down + r * stride + column);
      *reinterpret_cast<Eight<T>*>(staged + (view.rank + r) * a.span + column) =
          load_eight(up + r * stride + column);
    }
    down = staged;
    up = staged + view.rank * a.span;
    stride = a.span;
  }
  wait_for_previous();

  // Each thread has the same pairs of columns all along: so it needs no barrier for what it wrote
  // itself, and equal rows have equal sums of squares.
  const auto for_each_column = [&](const auto& action) {
    for (int i = 2 * static_cast<int>(threadIdx.x); i < columns; i += 2 * kThreads) {
      action(i);
      action(i + 1);
    }
  };
  T* const residual = static_cast<T*>(a.residual) + offset;
  const T* const delta = a.delta == nullptr ? nullptr : static_cast<const T*>(a.delta) + offset;
  float delta_rms = 0;
  if (a.delta_norm.weight != nullptr) {
    float squares = 0;
    for_each_column([&](int i) {
      const float x = to_float(delta[i]);
      squares = fmaf(x, x, squares);
    });
    squares = cluster_total<kBlocks>(squares, place.sums);
    delta_rms = rsqrtf(squares / width + a.norm_eps);
  }
  float squares = 0;
  for_each_column([&](int i) {
    float x = to_float(residual[i]);
    if (delta != nullptr) {
      float more = to_float(delta[i]);
      if (a.delta_norm.weight != nullptr) {
        more = normed<T>(more, delta_rms, norm_weight<T>(a.delta_norm, begin + i), a.norm_plus_one);
      }
      x = rounded<T>(x + more);
    }
    place.row[i] = x;
    squares = fmaf(x, x, squares);
  });
  __syncthreads();
  if (view.rank > 0) down_products(down, stride, view.rank, place.row, columns, place.dots);
  squares = cluster_total<kBlocks>(squares, place.sums + (kWarps + 1));

  if (view.rank >= 0) {
    const float inverse_rms = rsqrtf(squares / width + view.eps);
    for (int r = threadIdx.x; r < view.rank; r += kThreads) {
      float parts[kBlocks];
#pragma unroll
      for (int b = 0; b < kBlocks; ++b) parts[b] = *shared_of_block(place.dots + r, b);
      float dot = 0;
#pragma unroll
      for (int b = 0; b < kBlocks; ++b) dot += parts[b];
      place.mixing[r] = activated(view.activation, fmaf(dot, inverse_rms, view.down_bias[r]));
    }
    __syncthreads();
    float after = 0;
    for (int i = 2 * static_cast<int>(threadIdx.x); i < columns; i += 2 * kThreads) {
      float d[2] = {view.fixed[begin + i], view.fixed[begin + i + 1]};
      up_products(up + i, stride, view.rank, place.mixing, d);
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        const float x = fmaf(view.scale, d[k], place.row[i + k]);
        place.row[i + k] = x;
        after = fmaf(x, x, after);
      }
    }
    float factor = 1;
    if (view.norm_preserving) {
      after = cluster_total<kBlocks>(after, place.sums + 2 * (kWarps + 1));
      // exactly 1 where nothing changed, and where the result has no direction (dive/reference.py)
      if (after > 0.0f && after != squares) factor = sqrtf(squares) * rsqrtf(after);
    }
    squares = 0;
    for_each_column([&](int i) {
      const float x = rounded<T>(place.row[i] * factor);
      place.row[i] = x;
      squares = fmaf(x, x, squares);
    });
    squares = cluster_total<kBlocks>(squares, place.sums + 3 * (kWarps + 1));
  }
  const float inverse_rms = rsqrtf(squares / width + a.norm_eps);
  T* const out = static_cast<T*>(a.out) + offset;
  for_each_column([&](int i) {
    residual[i] = from_float<T>(place.row[i]);
    out[i] = from_float<T>(
        normed<T>(place.row[i], inverse_rms, norm_weight<T>(a.norm, begin + i), a.norm_plus_one));
  });
  cluster_sync();  // no block ends while another may read its shared memory
}

template <class T>
void run(const Queue& queue, AddArguments a, int count, int max_rank, bool clusters,
         std::size_t shared_limit) {
  // a block's share of the weights fits into shared memory only where a row has several blocks; 64
  // rows' find room at once
  const int blocks = clusters && count <= 64 ? kClusterBlocks : 1;
  a.span = ((a.width + blocks - 1) / blocks + 7) / 8 * 8;
  Shape shape;
  shape.grid = dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(count));
  shape.threads = kThreads;
  shape.cluster = static_cast<unsigned>(blocks);
  shape.shared = Layout::bytes(a.span);
  const std::size_t staged = 2 * static_cast<std::size_t>(max_rank) * a.span * sizeof(T);
  if (a.steering != nullptr && shape.shared + staged <= shared_limit) {
    a.staged_rank = max_rank;
    shape.shared += staged;
  }
  if (blocks == 1) {
    launch(queue, shape, add_and_norm<T, 1>, a);
  } else {
    launch(queue, shape, add_and_norm<T, kClusterBlocks>, a);
  }
}

std::array<const void*, 6> kernels() {
  const auto address = [](void (*kernel)(AddArguments)) {
    return reinterpret_cast<const void*>(kernel);
  };
  return {address(add_and_norm<float, 1>),    address(add_and_norm<float, kClusterBlocks>),
          address(add_and_norm<BFloat16, 1>), address(add_and_norm<BFloat16, kClusterBlocks>),
          address(add_and_norm<Half, 1>),     address(add_and_norm<Half, kClusterBlocks>)};
}

}  // namespace

void run_add_and_norm(const Queue& queue, DType dtype, AddArguments a, int count, int max_rank,
                      bool clusters, std::size_t shared_limit) {
  switch (dtype) {
    case DType::f32: return run<float>(queue, a, count, max_rank, clusters, shared_limit);
    case DType::bf16: return run<BFloat16>(queue, a, count, max_rank, clusters, shared_limit);
    case DType::f16: return run<Half>(queue, a, count, max_rank, clusters, shared_limit);
  }
}

bool has_clusters(int device) {
  int major = 0;
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device),
        "a device's attribute");
  cudaFuncAttributes compiled{};
  check(cudaFuncGetAttributes(&compiled, kernels()[0]), "a kernel's attributes");
  return major >= 9 && compiled.ptxVersion >= 90;
}

void allow_shared_memory(std::size_t bytes) {
  const auto size = static_cast<int>(bytes);
  for (const void* const kernel : kernels()) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, size),
          "shared memory of a kernel");
  }
}

}  // namespace dive::cuda
