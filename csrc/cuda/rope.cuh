// Norm and RoPE of the heads of one decode step, one head per warp.
#pragma once

#include "cuda/attention.h"

namespace dive::cuda {

constexpr int kColumns = kMaxHeadWidth / kWarp;  // of a head, per lane

// Of `count` numbers in a row, a lane has every 32nd.
template <class T, int kEach>
__device__ __forceinline__ void load_columns(const T* from, int count, float (&to)[kEach]) {
  const int lane = threadIdx.x % kWarp;
  from += lane;
  T read[kEach];  // all before the first is used
#pragma unroll
  for (int p = 0; p < kEach; ++p) {
    read[p] = lane + p * kWarp < count ? from[p * kWarp] : T{};
  }
#pragma unroll
  for (int p = 0; p < kEach; ++p) to[p] = to_float(read[p]);
}

template <class T, int kEach>
__device__ __forceinline__ void store_columns(const float (&from)[kEach], int count, T* to) {
  const int lane = threadIdx.x % kWarp;
  to += lane;
#pragma unroll
  for (int p = 0; p < kEach; ++p) {
    if (lane + p * kWarp < count) to[p * kWarp] = from_float<T>(from[p]);
  }
}

// The cosines and sines of a position, half of each.
struct Angles {
  float cosine[kColumns / 2], sine[kColumns / 2];

  __device__ __forceinline__ Angles(const AttendArguments& a, int position) {
    const std::int64_t at = static_cast<std::int64_t>(position) * a.half;
    load_columns(a.cosines + at, a.half, cosine);
    load_columns(a.sines + at, a.half, sine);
  }
};

// The weights of a head's norm; unset where there is no norm.
template <class T>
__device__ __forceinline__ void load_norm_weight(const AttendArguments& a, const NormView& norm,
                                                 float (&to)[kColumns]) {
  if (norm.weight == nullptr) return;
  if (norm.wide) {
    load_columns(static_cast<const float*>(norm.weight), a.width, to);
  } else {
    load_columns(static_cast<const T*>(norm.weight), a.width, to);
  }
}

// Prefetches a norm's weights into L2, by one warp.
template <class T>
__device__ __forceinline__ void prefetch_norm_weight(const AttendArguments& a,
                                                     const NormView& norm) {
  constexpr int kLine = 128;  // bytes
  const int at = static_cast<int>(threadIdx.x) % kWarp * kLine;
  const int bytes = a.width * static_cast<int>(norm.wide ? sizeof(float) : sizeof(T));
  if (norm.weight != nullptr && at < bytes) {
    prefetch(static_cast<const unsigned char*>(norm.weight) + at);
  }
}

// Norm and RoPE of one head by one warp, to shared memory.
__device__ __forceinline__ void prepare_head(const AttendArguments& a, const Angles& angles,
                                             bool norm, const float (&norm_weight)[kColumns],
                                             float (&head)[kColumns], float* to) {
  if (norm) {
    float squares = 0;
#pragma unroll
    for (int p = 0; p < kColumns; ++p) squares = fmaf(head[p], head[p], squares);
    const float inverse_rms = rsqrtf(warp_sum(squares) / static_cast<float>(a.width) + a.norm_eps);
#pragma unroll
    for (int p = 0; p < kColumns; ++p) {
      head[p] *= inverse_rms * (a.norm_plus_one ? 1.0f + norm_weight[p] : norm_weight[p]);
    }
  }
  store_columns(head, a.width, to);
  __syncwarp();
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int p = 0; p < kColumns / 2; ++p) {
    if (lane + p * kWarp < a.half) {
      float* const first = to + lane + p * kWarp;
      const float x = first[0], y = first[a.half];
      first[0] = x * angles.cosine[p] - y * angles.sine[p];
      first[a.half] = y * angles.cosine[p] + x * angles.sine[p];
    }
  }
  __syncwarp();
}

}  // namespace dive::cuda
