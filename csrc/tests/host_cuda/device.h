// The words of csrc/cuda/device.h on the host, for tests: the kernels' own sources then compile as
// plain C++, and csrc/tests/host_cuda/fibers.h runs their threads.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <type_traits>

#include "dtype.h"
#include "tests/host_cuda/fibers.h"
#include "tests/host_cuda/runtime_api.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))

#define threadIdx (::dive::cuda::host::current->index)
#define blockIdx (::dive::cuda::host::current->block->index)
#define blockDim (::dive::cuda::host::current->block->dim)
#define gridDim (::dive::cuda::host::current->block->grid)

#define DIVE_SHARED(name) \
  unsigned char* const name = ::dive::cuda::host::current->block->shared.get()

struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

namespace dive::cuda::host {

// What a lane brings to a shuffle: a value, and the lane whose value it reads.
struct Shuffled {
  std::uint64_t value = 0;
  unsigned source = 0;
  std::uint64_t result = 0;
};

inline void resolve_shuffle(void* const* payloads, unsigned mask) {
  for (unsigned lane = 0; lane < 32; ++lane) {
    if ((mask >> lane & 1) == 0) continue;
    auto& own = *static_cast<Shuffled*>(payloads[lane]);
    if (payloads[own.source] == nullptr) {
      fault("shuffles: lane " + std::to_string(lane) + " reads the value of lane " +
            std::to_string(own.source) + ", which its mask does not name");
    }
    own.result = static_cast<const Shuffled*>(payloads[own.source])->value;
  }
}

template <class T>
T shuffle(unsigned mask, T value, unsigned source, int line) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= 8);
  Shuffled own;
  own.source = source;
  std::memcpy(&own.value, &value, sizeof value);
  meet(mask, Wait::shuffle, line, &own, &resolve_shuffle);
  std::memcpy(&value, &own.result, sizeof value);
  return value;
}

inline void resolve_vote(void* const* payloads, unsigned mask) {
  unsigned votes = 0;
  for (unsigned lane = 0; lane < 32; ++lane) {
    if (mask >> lane & 1) votes |= *static_cast<unsigned*>(payloads[lane]) << lane;
  }
  for (unsigned lane = 0; lane < 32; ++lane) {
    if (mask >> lane & 1) *static_cast<unsigned*>(payloads[lane]) = votes;
  }
}

struct Fragments {
  float* d;
  const std::uint32_t* a;
  const std::uint32_t* b;
};

// As device.h has the fragments: sums in float32, in the order of the inner index.
template <class T>
void resolve_mma(void* const* payloads, unsigned) {
  const auto half = [](std::uint32_t word, unsigned which) {
    return to_float(T{static_cast<std::uint16_t>(word >> 16 * which)});
  };
  float a[16][16], b[16][8];
  for (unsigned lane = 0; lane < 32; ++lane) {
    const auto& own = *static_cast<const Fragments*>(payloads[lane]);
    const unsigned g = lane / 4, t = lane % 4;
    for (unsigned i = 0; i < 4; ++i) {
      for (unsigned w = 0; w < 2; ++w) {
        a[g + 8 * (i % 2)][8 * (i / 2) + 2 * t + w] = half(own.a[i], w);
        if (i < 2) b[8 * i + 2 * t + w][g] = half(own.b[i], w);
      }
    }
  }
  for (unsigned lane = 0; lane < 32; ++lane) {
    const auto& own = *static_cast<const Fragments*>(payloads[lane]);
    for (unsigned i = 0; i < 4; ++i) {
      const unsigned row = lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2;
      for (unsigned k = 0; k < 16; ++k) own.d[i] += a[row][k] * b[k][column];
    }
  }
}

inline void want_aligned(const void* address, std::size_t bytes) {
  if (reinterpret_cast<std::uintptr_t>(address) % bytes != 0) {
    fault("loads " + std::to_string(bytes) + " bytes from an address that is no multiple of it");
  }
}

}  // namespace dive::cuda::host

// Barriers and shuffles. The line of the call tells barriers apart and is what errors name.
inline void __syncthreads(int line = __builtin_LINE()) { dive::cuda::host::sync_block(line); }

inline void __syncwarp(unsigned mask = 0xffffffffu, int line = __builtin_LINE()) {
  dive::cuda::host::meet(mask, dive::cuda::host::Wait::warp, line, nullptr, nullptr);
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, int line = __builtin_LINE()) {
  const unsigned own = threadIdx.x % 32, w = static_cast<unsigned>(width);
  const unsigned lane = (own & ~(w - 1)) | (static_cast<unsigned>(source) & (w - 1));
  return dive::cuda::host::shuffle(mask, value, lane, line);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, int line = __builtin_LINE()) {
  const unsigned own = threadIdx.x % 32, w = static_cast<unsigned>(width);
  const unsigned lane = own ^ static_cast<unsigned>(bits), last = own | (w - 1);
  return dive::cuda::host::shuffle(mask, value, lane <= last ? lane : own, line);
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32,
                   int line = __builtin_LINE()) {
  const unsigned own = threadIdx.x % 32, last = own | (static_cast<unsigned>(width) - 1);
  return dive::cuda::host::shuffle(mask, value, own + by <= last ? own + by : own, line);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, int line = __builtin_LINE()) {
  unsigned votes = predicate != 0;
  dive::cuda::host::meet(mask, dive::cuda::host::Wait::vote, line, &votes,
                         &dive::cuda::host::resolve_vote);
  return votes;
}

inline int __any_sync(unsigned mask, int predicate, int line = __builtin_LINE()) {
  return __ballot_sync(mask, predicate, line) != 0;
}

inline int __all_sync(unsigned mask, int predicate, int line = __builtin_LINE()) {
  return __ballot_sync(mask, predicate, line) == mask;
}

namespace dive::cuda {

// Of CUDA's own functions, those that <cmath> lacks.
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline float __expf(float x) { return std::exp(x); }
inline float __fdividef(float x, float y) { return x / y; }
template <class T>
T min(T a, T b) {
  return b < a ? b : a;
}
template <class T>
T max(T a, T b) {
  return a < b ? b : a;
}

inline void wait_for_previous() { host::wait_for_previous(); }
inline void let_next_start() {}

inline uint4 load_words(const void* address) {
  host::want_aligned(address, sizeof(uint4));
  uint4 words;
  std::memcpy(&words, address, sizeof words);
  return words;
}

inline uint4 load_weights(const void* address) { return load_words(address); }

inline void prefetch(const void*) {}

// One fiber runs at a time: its writes are seen, and nothing comes between.
inline unsigned count_arrival(unsigned* counter) { return (*counter)++; }

// What is copied arrives at the last moment: who reads it earlier finds what was there before.
template <int kBytes>
void copy_to_shared(void* to, const void* from) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
  host::want_aligned(to, kBytes);
  host::want_aligned(from, kBytes);
  host::current->copies.push_back({to, from, kBytes});
}

inline void copies_done() {
  for (const host::Copy& copy : host::current->copies) {
    std::memcpy(copy.to, copy.from, copy.bytes);
  }
  host::current->copies.clear();
}

template <class T>
void mma_16816(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2],
               int line = __builtin_LINE()) {
  host::Fragments own{d, a, b};
  host::meet(0xffffffffu, host::Wait::mma, line, &own, &host::resolve_mma<T>);
}

inline unsigned cluster_rank() { return host::current->block->rank; }

inline void cluster_sync(int line = __builtin_LINE()) { host::sync_cluster(line); }
inline void cluster_arrive(int line = __builtin_LINE()) { host::arrive_at_cluster(line); }
inline void cluster_wait(int line = __builtin_LINE()) { host::wait_for_cluster(line); }

inline float* shared_of_block(float* own, unsigned rank) {
  const host::Block& block = *host::current->block;
  const auto at = reinterpret_cast<unsigned char*>(own) - block.shared.get();
  if (at < 0 || static_cast<std::size_t>(at) >= block.shared_bytes) {
    host::fault("asks for another block's copy of what is not in its shared memory");
  }
  if (rank >= block.cluster->blocks.size()) {
    host::fault("asks for block " + std::to_string(rank) + " of a cluster of " +
                std::to_string(block.cluster->blocks.size()));
  }
  return reinterpret_cast<float*>(block.cluster->blocks[rank].shared.get() + at);
}

}  // namespace dive::cuda
