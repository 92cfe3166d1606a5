// The device functions that the kernels use besides CUDA's own: those that need assembly.
//
// The same sources also compile for the host, where csrc/tests/host_cuda/device.h defines the same
// functions, so that the kernels' logic is tested without a GPU.
#pragma once

#include <cstdint>
#include <cstring>

#include "dtype.h"

#ifdef DIVE_HOST_CUDA
#include "tests/host_cuda/device.h"
#else
#include <cuda_runtime.h>

// The block's dynamic shared memory, 16-byte aligned.
#define DIVE_SHARED(name)                                        \
  extern __shared__ __align__(16) unsigned char shared_memory[]; \
  unsigned char* const name = shared_memory

namespace dive::cuda {

// Nothing that an earlier kernel of the step wrote may be read, and nothing at all written, before
// this (programmatic dependent launch; every thread of every kernel calls it). What copies put into
// memory before the step, and what kernels of earlier steps wrote, may be read at any time: a step
// begins with copies, which wait for all that came before.
__device__ __forceinline__ void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// The next kernel's blocks may use free resources from now on, to load what does not depend on this
// one.
__device__ __forceinline__ void let_next_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// Loads 16 bytes that are read once: not allocated in L1, and never from memory that a kernel
// writes.
__device__ __forceinline__ uint4 load_weights(const void* address) {
  uint4 words;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w)
               : "l"(address));
  return words;
}

__device__ __forceinline__ uint4 load_words(const void* address) {
  return *static_cast<const uint4*>(address);
}

// Prefetches into L2.
__device__ __forceinline__ void prefetch(const void* address) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
}

// Increments the count of arrived blocks and returns its former value. With acquire and release
// semantics at GPU scope: a later block sees all writes of the earlier ones before their arrival.
__device__ __forceinline__ unsigned count_arrival(unsigned* counter) {
  unsigned before;
  asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], 1;"
               : "=r"(before)
               : "l"(counter)
               : "memory");
  return before;
}

// kBytes (4, 8 or 16, both addresses multiples of it) copied asynchronously into shared memory,
// without a register: the copying thread may read them after copies_done, the others of its block
// after a barrier that follows.
template <int kBytes>
__device__ __forceinline__ void copy_to_shared(void* to, const void* from) {
  const auto shared = static_cast<unsigned>(__cvta_generic_to_shared(to));
  if constexpr (kBytes == 16) {  // read once: bypasses L1
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared), "l"(from) : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(shared), "l"(from), "n"(kBytes)
                 : "memory");
  }
}

__device__ __forceinline__ void copies_done() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// d[16 x 8] += a[16 x 16] b[16 x 8], spread over a warp as PTX's mma.m16n8k16 has it: lane 4 g + t
// holds of a the rows g and g + 8 at columns 2t, 2t + 1 (a[0], a[1]) and 2t + 8, 2t + 9 (a[2],
// a[3]); of b the column g at the same rows (b[0], b[1]); of d the rows g (d[0], d[1]) and g + 8
// (d[2], d[3]) at columns 2t, 2t + 1.
template <class T>
__device__ __forceinline__ void mma_16816(float (&d)[4], const std::uint32_t (&a)[4],
                                          const std::uint32_t (&b)[2]) {
  if constexpr (dtype_of<T>::value == DType::bf16) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
}

// The block's rank in its cluster (sm_90 and later); 0 elsewhere, where a block is alone.
__device__ __forceinline__ unsigned cluster_rank() {
#if __CUDA_ARCH__ >= 900
  unsigned rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
#else
  return 0;
#endif
}

// A barrier of all threads of the cluster, after which its blocks see each other's writes.
__device__ __forceinline__ void cluster_sync() {
#if __CUDA_ARCH__ >= 900
  __syncwarp();  // the barrier is one instruction of a whole warp
  asm volatile("barrier.cluster.arrive.release.aligned;\n\tbarrier.cluster.wait.acquire.aligned;" ::
                   : "memory");
#else
  __syncthreads();
#endif
}

// A barrier in two halves with work between them. After it all blocks of the cluster have started,
// as the first access to their shared memory requires; it orders no writes.
__device__ __forceinline__ void cluster_arrive() {
#if __CUDA_ARCH__ >= 900
  __syncwarp();
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
#endif
}
__device__ __forceinline__ void cluster_wait() {
#if __CUDA_ARCH__ >= 900
  __syncwarp();
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#else
  __syncthreads();
#endif
}

// The address in another block's shared memory that corresponds to `own` in this block's.
__device__ __forceinline__ float* shared_of_block(float* own, unsigned rank) {
#if __CUDA_ARCH__ >= 900
  std::uint64_t other;
  asm volatile("mapa.u64 %0, %1, %2;"
               : "=l"(other)
               : "l"(reinterpret_cast<std::uint64_t>(own)), "r"(rank));
  return reinterpret_cast<float*>(other);
#else
  return own;
#endif
}

}  // namespace dive::cuda
#endif

namespace dive::cuda {

constexpr int kWarp = 32;
constexpr unsigned kFullWarp = 0xffffffffu;

// The same sum in every lane, always added in the same order.
__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
  for (int lane = 16; lane > 0; lane /= 2) value += __shfl_xor_sync(kFullWarp, value, lane);
  return value;
}

// Eight numbers of T, aligned to their size (at most 16 bytes).
template <class T>
struct Eight {
  uint4 words[sizeof(T) * 8 / 16];
};

template <class T>
__device__ __forceinline__ Eight<T> load_eight(const T* from) {
  Eight<T> eight;
#pragma unroll
  for (unsigned i = 0; i < sizeof(T) * 8 / 16; ++i) {
    eight.words[i] = load_words(reinterpret_cast<const unsigned char*>(from) + 16 * i);
  }
  return eight;
}

template <class T>
__device__ __forceinline__ Eight<T> load_eight_weights(const T* from) {
  Eight<T> eight;
#pragma unroll
  for (unsigned i = 0; i < sizeof(T) * 8 / 16; ++i) {
    eight.words[i] = load_weights(reinterpret_cast<const unsigned char*>(from) + 16 * i);
  }
  return eight;
}

template <class T>
__device__ __forceinline__ void unpack(const Eight<T>& eight, float (&values)[8]) {
  T numbers[8];
  std::memcpy(numbers, &eight, sizeof numbers);
#pragma unroll
  for (int i = 0; i < 8; ++i) values[i] = to_float(numbers[i]);
}

__device__ __forceinline__ float silu(float x) { return x / (1.0f + expf(-x)); }

__device__ __forceinline__ float gelu(float x) {
  return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
}

template <class T>
__device__ __forceinline__ float rounded(float value) {
  return to_float(from_float<T>(value));
}

}  // namespace dive::cuda
