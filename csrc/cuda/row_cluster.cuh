// A block's part of a row: its columns and shared memory, and the communication between the blocks
// of a row.
#pragma once

#include <algorithm>

#include "cuda/add_and_norm.h"

namespace dive::cuda {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kClusterBlocks = 8;
static_assert(kMaxRank <= kThreads, "each rank has a thread");

// The number of adjacent columns of a thread: two, as a cluster's block has few columns
// for its threads; 16 bytes of half precision at a time where one block has the whole row.
template <int kBlocks>
constexpr int kOwn = kBlocks == 1 ? 8 : 2;

// Sums of squares over a row, each at an address of its own, so that none is written twice.
enum Sum { kOfDelta, kOfRow, kOfSteered, kOfResult, kSums };

// A block's part of its row: which columns, and what it has in shared memory.
template <class T, int kBlocks>
struct Part {
  int rank;             // of the block in its cluster
  int begin;            // its first column
  int columns;          // how many; none or less where the row ends before
  float* row;           // [span]
  float* sums;          // [kSums][kBlocks][kWarps]: the part of each warp of the cluster
  float* dots;          // [kBlocks][kMaxRank]: the part of each block of the products with `down`
  float* mixing;        // [kMaxRank]
  unsigned char* norm;  // [span] of the norm's numbers, where AddArguments::norms_staged
  unsigned char* delta_norm;  // [span]
  float* fixed;               // [span], where a rank is at most AddArguments::staged_rank
  T* down;                    // [staged_rank, span]
  T* up;                      // [staged_rank, span]

  __device__ Part(unsigned char* shared, const AddArguments& a)
      : rank(kBlocks == 1 ? 0 : static_cast<int>(cluster_rank())),
        begin(rank * a.span),
        columns(min(a.span, a.width - begin)),
        row(reinterpret_cast<float*>(shared)),
        sums(row + a.span),
        dots(sums + kSums * kBlocks * kWarps),
        mixing(dots + kBlocks * kMaxRank),
        norm(shared + bytes(a.span)),
        delta_norm(norm + (a.norms_staged ? norm_bytes(a.norm, a.span) : 0)),
        fixed(reinterpret_cast<float*>(delta_norm +
                                       (a.norms_staged ? norm_bytes(a.delta_norm, a.span) : 0))),
        down(reinterpret_cast<T*>(fixed + a.span)),
        up(down + a.staged_rank * a.span) {}

  // All multiples of 16, as the span is one of 8.
  __host__ __device__ static std::size_t bytes(int span) {
    const int sums = kSums * kBlocks * kWarps, products = (kBlocks + 1) * kMaxRank;
    return (span + sums + products) * sizeof(float);
  }
  __host__ __device__ static std::size_t norm_bytes(const NormView& norm, int span) {
    if (norm.weight == nullptr) return 0;
    return span * (norm.wide ? sizeof(float) : sizeof(T));
  }
  __host__ __device__ static std::size_t adapter_bytes(int rank, int span) {
    return span * (sizeof(float) + 2 * rank * sizeof(T));
  }
};

// Calls `action` with the first of each of the thread's own columns, always in the same order: so a
// thread needs no barrier for what it wrote itself, and equal rows have equal sums.
template <int kBlocks, class F>
__device__ __forceinline__ void for_own_columns(int columns, const F& action) {
  constexpr int kStep = kOwn<kBlocks> * kThreads;
#pragma unroll 1
  for (int i = kOwn<kBlocks> * static_cast<int>(threadIdx.x); i < columns; i += kStep) action(i);
}

// Adjacent numbers, aligned to their size or to 16 bytes.
template <class T, int kCount>
struct alignas(std::min<std::size_t>(kCount * sizeof(T), 16)) Numbers {
  T values[kCount];
};

template <int kCount, class T>
__device__ __forceinline__ void load(const T* from, float (&values)[kCount]) {
  const auto numbers = *reinterpret_cast<const Numbers<T, kCount>*>(from);
#pragma unroll
  for (int k = 0; k < kCount; ++k) values[k] = to_float(numbers.values[k]);
}

template <int kCount, class T>
__device__ __forceinline__ void store(T* to, const float (&values)[kCount]) {
  Numbers<T, kCount> numbers;
#pragma unroll
  for (int k = 0; k < kCount; ++k) numbers.values[k] = from_float<T>(values[k]);
  *reinterpret_cast<Numbers<T, kCount>*>(to) = numbers;
}

template <int kCount>
__device__ __forceinline__ float add_squares(const float (&values)[kCount], float sum) {
#pragma unroll
  for (int k = 0; k < kCount; ++k) sum = fmaf(values[k], values[k], sum);
  return sum;
}

// ---- between the blocks of a row ----

// Writes a number that all lanes of a warp have to the same address in each block's shared memory.
template <int kBlocks>
__device__ __forceinline__ void broadcast(float* pointer, float value) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  if constexpr (kBlocks == 1) {
    if (lane == 0) *pointer = value;
  } else {
    if (lane < kBlocks) *shared_of_block(pointer, static_cast<unsigned>(lane)) = value;
  }
}

// After it, what every block of the row has broadcast is visible.
template <int kBlocks>
__device__ __forceinline__ void wait_for_broadcasts() {
  if constexpr (kBlocks == 1) {
    __syncthreads();
  } else {
    cluster_sync();
  }
}

template <class T, int kBlocks>
__device__ __forceinline__ void broadcast_sum(const Part<T, kBlocks>& part, Sum which,
                                              float value) {
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  broadcast<kBlocks>(part.sums + (which * kBlocks + part.rank) * kWarps + warp, warp_sum(value));
}

// A sum over the row after its broadcast: added in the same order, and so the same, in every
// thread.
template <class T, int kBlocks>
__device__ __forceinline__ float sum_of_row(const Part<T, kBlocks>& part, Sum which) {
  const float* const parts = part.sums + which * kBlocks * kWarps;
  float sum = 0;
  for (int i = threadIdx.x % kWarp; i < kBlocks * kWarps; i += kWarp) sum += parts[i];
  return warp_sum(sum);
}

}  // namespace dive::cuda
