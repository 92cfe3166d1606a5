// For each row, with `round` to the model's dtype where transformers rounds:
//   r      = round(residual + delta)         (delta normed first, where it has a norm)
//   mixing = phi(down r / rms(r) + bias)
//   s      = r + scale (up mixing + fixed)
//   r'     = round(s |r| / |s|)              (round(s), where the norm may change)
//   out    = rmsnorm(r')
// r' replaces the residual; it is r where the row is not steered.
//
// The kernel runs twice per layer and computes little: its time is spent on waits for memory and
// for its blocks. Therefore
// - loads of what no kernel of the step writes (norms, adapters) begin before wait_for_previous, as
//   the weights of the model have evicted all of that from the caches since its last use;
// - blocks communicate by writing into each other's shared memory. After the barrier that publishes
//   it each block finds all it needs in its own, and none has to outlive the reads of others.
#include "cuda/add_and_norm.h"

#include <algorithm>
#include <array>

#include "cuda/row_cluster.cuh"

namespace dive::cuda {
namespace {

// ---- before the wait: what no kernel of the step writes ----

// The thread's own columns of a norm's weights.
template <int kBlocks, class N>
__device__ __forceinline__ void stage_own(N* to, const N* from, int columns) {
  constexpr int kBytes = kOwn<kBlocks> * sizeof(N), kPiece = kBytes < 16 ? kBytes : 16;
  for_own_columns<kBlocks>(columns, [&](int i) {
#pragma unroll
    for (int piece = 0; piece < kBytes; piece += kPiece) {
      const int at = i + piece / static_cast<int>(sizeof(N));
      copy_to_shared<kPiece>(to + at, from + at);
    }
  });
}

template <class T, int kBlocks>
__device__ __forceinline__ void stage_norm(const NormView& norm, unsigned char* to,
                                           const Part<T, kBlocks>& part) {
  if (norm.weight == nullptr) return;
  if (norm.wide) {
    const float* const from = static_cast<const float*>(norm.weight) + part.begin;
    stage_own<kBlocks>(reinterpret_cast<float*>(to), from, part.columns);
  } else {
    const T* const from = static_cast<const T*>(norm.weight) + part.begin;
    stage_own<kBlocks>(reinterpret_cast<T*>(to), from, part.columns);
  }
}

// An adapter at this block's columns.
template <class T>
struct Adapter {
  const T* down;  // [rank, stride]
  const T* up;    // [rank, stride]
  const float* fixed;
  std::int64_t stride;
  float bias;  // of the rank with the thread's index
};

// Copies the adapter to shared memory where that has the capacity, and prefetches it into L2
// elsewhere.
template <class T, int kBlocks>
__device__ __forceinline__ Adapter<T> bring_near(const SteerView& view, const AddArguments& a,
                                                 const Part<T, kBlocks>& part) {
  Adapter<T> own{static_cast<const T*>(view.down) + part.begin,
                 static_cast<const T*>(view.up) + part.begin, view.fixed + part.begin, a.width, 0};
  if (view.rank < 0) return own;
  const int thread = static_cast<int>(threadIdx.x);
  if (thread < view.rank) own.bias = view.down_bias[thread];
  if (view.rank <= a.staged_rank) {
    constexpr int kPiece = 16 / sizeof(T);
    const int pieces = max(part.columns, 0) / kPiece, all = view.rank * pieces;
#pragma unroll 1
    for (int i = thread; i < all; i += kThreads) {
      const int r = i / pieces, column = i % pieces * kPiece;
      copy_to_shared<16>(part.down + r * a.span + column, own.down + r * own.stride + column);
      copy_to_shared<16>(part.up + r * a.span + column, own.up + r * own.stride + column);
    }
    stage_own<kBlocks>(part.fixed, own.fixed, part.columns);
    return {part.down, part.up, part.fixed, a.span, own.bias};
  }
  constexpr int kLine = 128 / sizeof(T);
  const int lines = (max(part.columns, 0) + kLine - 1) / kLine, all = view.rank * lines;
#pragma unroll 1
  for (int i = thread; i < all; i += kThreads) {
    const std::int64_t at = i / lines * own.stride + i % lines * kLine;
    prefetch(own.down + at);
    prefetch(own.up + at);
  }
#pragma unroll 1
  for (int i = 32 * thread; i < part.columns; i += 32 * kThreads) prefetch(own.fixed + i);
  return own;
}

// ---- behind it ----

// The norm's weights at the thread's columns from `i` of the part on: from `staged`, null where
// they were not staged.
template <class T, int kCount>
__device__ __forceinline__ void norm_weights(const NormView& norm, const unsigned char* staged,
                                             int begin, int i, float (&weights)[kCount]) {
  if (staged != nullptr) {
    if (norm.wide) {
      load(reinterpret_cast<const float*>(staged) + i, weights);
    } else {
      load(reinterpret_cast<const T*>(staged) + i, weights);
    }
    return;
  }
#pragma unroll
  for (int k = 0; k < kCount; ++k) {
    weights[k] = norm.wide ? static_cast<const float*>(norm.weight)[begin + i + k]
                           : to_float(static_cast<const T*>(norm.weight)[begin + i + k]);
  }
}

// As transformers rounds: Llama weight * round(x / rms), Gemma round(x / rms * (1 + weight)).
template <class T>
__device__ __forceinline__ float normed(float x, float inverse_rms, float weight, bool plus_one) {
  if (plus_one) return rounded<T>(x * inverse_rms * (1.0f + weight));
  return rounded<T>(rounded<T>(x * inverse_rms) * weight);
}

// residual + delta into part.row. Returns the thread's part of the sum of squares.
template <class T, int kBlocks>
__device__ __forceinline__ float add(const AddArguments& a, const Part<T, kBlocks>& part,
                                     std::int64_t offset) {
  constexpr int kCount = kOwn<kBlocks>;
  const T* const residual = static_cast<const T*>(a.residual) + offset;
  const T* const delta = a.delta == nullptr ? nullptr : static_cast<const T*>(a.delta) + offset;
  float delta_rms = 0;
  if (a.delta_norm.weight != nullptr) {
    float squares = 0;
    for_own_columns<kBlocks>(part.columns, [&](int i) {
      float x[kCount];
      load(delta + i, x);
      squares = add_squares(x, squares);
    });
    broadcast_sum(part, kOfDelta, squares);
    wait_for_broadcasts<kBlocks>();
    squares = sum_of_row(part, kOfDelta);
    delta_rms = rsqrtf(squares / static_cast<float>(a.width) + a.norm_eps);
    copies_done();
  }
  float squares = 0;
  for_own_columns<kBlocks>(part.columns, [&](int i) {
    float x[kCount], more[kCount];
    load(residual + i, x);
    if (delta != nullptr) {
      load(delta + i, more);
      if (a.delta_norm.weight != nullptr) {
        float weights[kCount];
        norm_weights<T>(a.delta_norm, a.norms_staged ? part.delta_norm : nullptr, part.begin, i,
                        weights);
#pragma unroll
        for (int k = 0; k < kCount; ++k) {
          more[k] = normed<T>(more[k], delta_rms, weights[k], a.norm_plus_one);
        }
      }
#pragma unroll
      for (int k = 0; k < kCount; ++k) x[k] = rounded<T>(x[k] + more[k]);
    }
    store(part.row + i, x);
    squares = add_squares(x, squares);
  });
  return squares;
}

// The products of `down` with this block's columns, broadcast to the row's blocks; a warp computes
// two ranks at once.
template <class T, int kBlocks>
__device__ __forceinline__ void down_products(const Adapter<T>& adapter, int rank,
                                              const Part<T, kBlocks>& part) {
  const int lane = threadIdx.x % kWarp;
  float* const dots = part.dots + part.rank * kMaxRank;
#pragma unroll 1
  for (int r = threadIdx.x / kWarp; r < rank; r += 2 * kWarps) {
    const bool two = r + kWarps < rank;
    const T* const first = adapter.down + r * adapter.stride;
    const T* const second = two ? first + kWarps * adapter.stride : first;
    float sum = 0, other = 0;
#pragma unroll(kBlocks == 1 ? 4 : 1)
    for (int i = 8 * lane; i < part.columns; i += 8 * kWarp) {
      float x[8], w[8], v[8];
      load(first + i, w);
      load(second + i, v);
      load(part.row + i, x);
#pragma unroll
      for (int k = 0; k < 8; ++k) {
        sum = fmaf(w[k], x[k], sum);
        other = fmaf(v[k], x[k], other);
      }
    }
    broadcast<kBlocks>(dots + r, warp_sum(sum));
    other = warp_sum(other);
    if (two) broadcast<kBlocks>(dots + r + kWarps, other);
  }
}

__device__ __forceinline__ float activated(Activation activation, float x) {
  switch (activation) {
    case Activation::silu: return silu(x);
    case Activation::gelu: return gelu(x);
    case Activation::tanh: return tanhf(x);
    case Activation::identity: break;
  }
  return x;
}

// sums += up mixing for columns side by side, with the loads of up to eight ranks in flight.
template <class T, int kCount>
__device__ __forceinline__ void up_products(const T* up, std::int64_t stride, int rank,
                                            const float* mixing, float (&sums)[kCount]) {
  using Weights = Numbers<T, kCount>;
  constexpr int kRanks = sizeof(Weights) <= 16 ? 8 : 4;
  const auto add_rank = [&](const Weights& weights, float factor) {
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      sums[k] = fmaf(to_float(weights.values[k]), factor, sums[k]);
    }
  };
  const auto of_rank = [&](int r) { return *reinterpret_cast<const Weights*>(up + r * stride); };
  int r = 0;
#pragma unroll 1
  for (; r + kRanks <= rank; r += kRanks) {
    Weights weights[kRanks];
#pragma unroll
    for (int k = 0; k < kRanks; ++k) weights[k] = of_rank(r + k);
#pragma unroll
    for (int k = 0; k < kRanks; ++k) add_rank(weights[k], mixing[r + k]);
  }
#pragma unroll 1
  for (; r < rank; ++r) add_rank(of_rank(r), mixing[r]);
}

// Steers part.row, whose sum of squares is `before`. Returns the sum of squares of the result.
template <class T, int kBlocks>
__device__ __forceinline__ float steer(const SteerView& view, const Adapter<T>& adapter,
                                       const AddArguments& a, const Part<T, kBlocks>& part,
                                       float before) {
  constexpr int kCount = kOwn<kBlocks>;
  const float inverse_rms = rsqrtf(before / static_cast<float>(a.width) + view.eps);
  const int r = static_cast<int>(threadIdx.x);
  if (r < view.rank) {
    float dot = 0;
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) dot += part.dots[b * kMaxRank + r];
    part.mixing[r] = activated(view.activation, fmaf(dot, inverse_rms, adapter.bias));
  }
  __syncthreads();
  float after = 0;
  for_own_columns<kBlocks>(part.columns, [&](int i) {
    float change[kCount], x[kCount];
    load(adapter.fixed + i, change);
    up_products(adapter.up + i, adapter.stride, view.rank, part.mixing, change);
    load(part.row + i, x);
#pragma unroll
    for (int k = 0; k < kCount; ++k) x[k] = fmaf(view.scale, change[k], x[k]);
    store(part.row + i, x);
    after = add_squares(x, after);
  });
  float factor = 1;
  if (view.norm_preserving) {
    broadcast_sum(part, kOfSteered, after);
    wait_for_broadcasts<kBlocks>();
    after = sum_of_row(part, kOfSteered);
    // exactly 1 where nothing changed, and where the result has no direction (dive/reference.py)
    if (after > 0.0f && after != before) factor = sqrtf(before) * rsqrtf(after);
  }
  float squares = 0;
  for_own_columns<kBlocks>(part.columns, [&](int i) {
    float x[kCount];
    load(part.row + i, x);
#pragma unroll
    for (int k = 0; k < kCount; ++k) x[k] = rounded<T>(x[k] * factor);
    store(part.row + i, x);
    squares = add_squares(x, squares);
  });
  broadcast_sum(part, kOfResult, squares);
  wait_for_broadcasts<kBlocks>();
  return sum_of_row(part, kOfResult);
}

template <class T, int kBlocks>
__global__ void __launch_bounds__(kThreads, 1) add_and_norm(const AddArguments a) {
  DIVE_SHARED(shared);
  const Part<T, kBlocks> part(shared, a);
  const std::int64_t offset = static_cast<std::int64_t>(blockIdx.y) * a.width + part.begin;
  constexpr int kCount = kOwn<kBlocks>;
  // blocks may write into each other's shared memory once all have begun
  if constexpr (kBlocks > 1) cluster_arrive();
  let_next_start();

  SteerView view;
  if (a.steering != nullptr) view = a.steering[a.slots[blockIdx.y] * a.steering_stride];
  if (a.norms_staged) {
    stage_norm(a.delta_norm, part.delta_norm, part);
    stage_norm(a.norm, part.norm, part);
  }
  const Adapter<T> adapter = bring_near(view, a, part);
  if constexpr (kBlocks > 1) cluster_wait();
  wait_for_previous();

  float squares = add(a, part, offset);
  broadcast_sum(part, kOfRow, squares);
  copies_done();
  if (view.rank > 0) {
    __syncthreads();  // the row and `down` are there
    down_products(adapter, view.rank, part);
  }
  wait_for_broadcasts<kBlocks>();
  squares = sum_of_row(part, kOfRow);
  if (view.rank >= 0) squares = steer(view, adapter, a, part, squares);

  const float inverse_rms = rsqrtf(squares / static_cast<float>(a.width) + a.norm_eps);
  for_own_columns<kBlocks>(part.columns, [&](int i) {
    float x[kCount], weights[kCount], out[kCount];
    norm_weights<T>(a.norm, a.norms_staged ? part.norm : nullptr, part.begin, i, weights);
    load(part.row + i, x);
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      out[k] = normed<T>(x[k], inverse_rms, weights[k], a.norm_plus_one);
    }
    store(static_cast<T*>(a.residual) + offset + i, x);
    store(static_cast<T*>(a.out) + offset + i, out);
  });
}

template <class T, int kBlocks>
void run(const Queue& queue, AddArguments a, int count, int max_rank, std::size_t shared_limit) {
  using Memory = Part<T, kBlocks>;
  a.span = ((a.width + kBlocks - 1) / kBlocks + 7) / 8 * 8;
  Shape shape;
  shape.grid = dim3(kBlocks, static_cast<unsigned>(count));
  shape.threads = kThreads;
  shape.cluster = kBlocks;
  shape.shared = Memory::bytes(a.span);

  // shared memory stages what fits: the norms first, which every row needs
  const auto aligned = [](const void* weights) {
    return reinterpret_cast<std::uintptr_t>(weights) % 16 == 0;
  };
  const std::size_t norms =
      Memory::norm_bytes(a.norm, a.span) + Memory::norm_bytes(a.delta_norm, a.span);
  a.norms_staged = aligned(a.norm.weight) && aligned(a.delta_norm.weight) &&
                   shape.shared + norms <= shared_limit;
  if (a.norms_staged) shape.shared += norms;
  const std::size_t adapter = Memory::adapter_bytes(max_rank, a.span);
  const bool staged = a.steering != nullptr && shape.shared + adapter <= shared_limit;
  a.staged_rank = staged ? max_rank : -1;
  if (staged) shape.shared += adapter;
  launch(queue, shape, add_and_norm<T, kBlocks>, a);
}

template <class T>
void run(const Queue& queue, const AddArguments& a, int count, int max_rank, bool clusters,
         std::size_t shared_limit) {
  // the clusters of 64 rows run at the same time
  if (clusters && count <= 64) {
    run<T, kClusterBlocks>(queue, a, count, max_rank, shared_limit);
  } else {
    run<T, 1>(queue, a, count, max_rank, shared_limit);
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
