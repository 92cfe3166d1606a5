// A softmax over a part of the tokens, as its largest score, the sum of e^(score - largest), and
// the values mixed with these; and how such parts add up to the softmax over all.
#pragma once

#include "cuda/device.h"

namespace dive::cuda {

constexpr float kNothing = -1e30f;

// The maximum and sum of the softmax over a part of the tokens.
struct alignas(8) Total {
  float largest = kNothing;
  float sum = 0;
};

// Four numbers of T, aligned to their size.
template <class T>
struct alignas(4 * sizeof(T)) Four {
  T x[4];
};

__device__ __forceinline__ Four<float> load_four(const float* from) {
  const uint4 words = load_words(from);
  Four<float> four;
  std::memcpy(&four, &words, sizeof four);
  return four;
}

template <class T>
__device__ __forceinline__ void store_four(T* to, const Four<T>& four) {
  *reinterpret_cast<Four<T>*>(to) = four;
}

// The parts of each of the block's heads.
struct Parts {
  float* mixed;   // [heads][capacity][width]
  Total* totals;  // [heads][capacity]
  int capacity;
};

// A softmax over a part of the tokens, of one head: eight columns of the mixed values.
struct Softmax {
  float largest = kNothing;
  float sum = 0;
  float mixed[8] = {};

  // Makes `high` the largest: what is there already is rescaled once for several scores.
  __device__ __forceinline__ void rise(float high) {
    const float old = expf(largest - high);
    sum *= old;
#pragma unroll
    for (int i = 0; i < 8; ++i) mixed[i] *= old;
    largest = high;
  }
  __device__ __forceinline__ void add(float score, const float (&value)[8]) {
    const float own = expf(score - largest);
    sum += own;
#pragma unroll
    for (int i = 0; i < 8; ++i) mixed[i] = fmaf(own, value[i], mixed[i]);
  }
  __device__ __forceinline__ void merge_lane(int distance) {
    const float other = __shfl_xor_sync(kFullWarp, largest, distance);
    const float high = fmaxf(largest, other);
    const float own = expf(largest - high), theirs = expf(other - high);
    sum = fmaf(sum, own, __shfl_xor_sync(kFullWarp, sum, distance) * theirs);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      mixed[i] = fmaf(mixed[i], own, __shfl_xor_sync(kFullWarp, mixed[i], distance) * theirs);
    }
    largest = high;
  }
};

// The total of up to kMost parts, by a warp; and what each part's mixed values are to be multiplied
// with, 0 for the parts that are not there. With `divide` the sum of all is then the softmax.
template <int kMost>
__device__ __forceinline__ Total weigh(const Total (&part)[(kMost + kWarp - 1) / kWarp],
                                       bool divide, float* factors) {
  constexpr int kEach = (kMost + kWarp - 1) / kWarp, kSpan = kMost < kWarp ? kMost : kWarp;
  Total total;
#pragma unroll
  for (int e = 0; e < kEach; ++e) total.largest = fmaxf(total.largest, part[e].largest);
#pragma unroll
  for (int distance = kSpan / 2; distance > 0; distance /= 2) {
    total.largest = fmaxf(total.largest, __shfl_xor_sync(kFullWarp, total.largest, distance));
  }
  float factor[kEach];
#pragma unroll
  for (int e = 0; e < kEach; ++e) {
    factor[e] = expf(part[e].largest - total.largest);
    total.sum = fmaf(part[e].sum, factor[e], total.sum);
  }
#pragma unroll
  for (int distance = kSpan / 2; distance > 0; distance /= 2) {
    total.sum += __shfl_xor_sync(kFullWarp, total.sum, distance);
  }
  const float scale = divide ? 1.0f / total.sum : 1.0f;
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int e = 0; e < kEach; ++e) {
    if (lane < kSpan) factors[lane + e * kWarp] = factor[e] * scale;
  }
  return total;
}

// Adds up `count` parts of each head, of at most kMost, in their order: `keep` gets four columns at
// a time, and each head's warp the total. A thread reads kAtOnce parts' values together, and the
// first of them while the factors are not yet there: its time is that of memory.
template <int kMost, int kAtOnce, class Keep>
__device__ __forceinline__ Total combine(const Parts& parts, int count, int heads, int width,
                                         bool divide, float* factors, const Keep& keep) {
  static_assert(kMost % kAtOnce == 0);
  constexpr int kEach = (kMost + kWarp - 1) / kWarp;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  Total part[kEach];
#pragma unroll
  for (int e = 0; e < kEach; ++e) {
    const int p = lane + e * kWarp;
    if (warp < heads && p < count) part[e] = parts.totals[warp * parts.capacity + p];
  }
  Four<float> four[kAtOnce];
  const auto load = [&](int h, int i, int first) {
    const float* from = parts.mixed + (h * parts.capacity + first) * width + i;
#pragma unroll
    for (int p = 0; p < kAtOnce; ++p) {
      four[p] = first + p < count ? load_four(from) : Four<float>{};
      from += width;
    }
  };
  const int own = static_cast<int>(threadIdx.x) * 4;
  if (own < heads * width) load(own / width, own % width, 0);
  Total total;
  if (warp < heads) total = weigh<kMost>(part, divide, factors + warp * kMost);
  __syncthreads();
  bool loaded = true;
  for (int j = own; j < heads * width; j += static_cast<int>(blockDim.x) * 4) {
    const int h = j / width, i = j % width;
    Four<float> sum{};
    for (int first = 0; first < count; first += kAtOnce) {
      if (!loaded) load(h, i, first);
      loaded = false;
#pragma unroll
      for (int p = 0; p < kAtOnce; ++p) {
        const float factor = factors[h * kMost + first + p];
#pragma unroll
        for (int x = 0; x < 4; ++x) sum.x[x] = fmaf(four[p].x[x], factor, sum.x[x]);
      }
    }
    keep(h, i, sum);
  }
  return total;
}

}  // namespace dive::cuda
