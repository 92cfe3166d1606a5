#include "cuda/attention.h"

#include <algorithm>

namespace dive::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarp;
constexpr int kLeastShare = 64;  // tokens: less is not worth a block
constexpr float kNothing = -1e30f;

int heads_of_block(int group) { return group >= 3 ? 4 : group; }

// One softmax over part of the tokens: the largest score, the sum of e^(score - largest), and the
// values weighted with these.
struct Running {
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

// One head by one warp: from memory to `to` in shared memory, with norm and RoPE.
template <class T>
__device__ void prepare_head(const AttendArguments& a, const float* from, const NormView& norm,
                             const float* cosines, const float* sines, float* to) {
  const int lane = threadIdx.x % kWarp;
  float squares = 0;
  for (int i = lane; i < a.width; i += kWarp) squares = fmaf(from[i], from[i], squares);
  squares = warp_sum(squares);
  const float inverse_rms = rsqrtf(squares / static_cast<float>(a.width) + a.norm_eps);
  for (int i = lane; i < a.width; i += kWarp) {
    float gain = 1;
    if (norm.weight != nullptr) {
      gain = norm.wide ? static_cast<const float*>(norm.weight)[i]
                       : to_float(static_cast<const T*>(norm.weight)[i]);
      gain = inverse_rms * (a.norm_plus_one ? 1.0f + gain : gain);
    }
    to[i] = from[i] * gain;
  }
  __syncwarp();
  for (int i = lane; i < a.half; i += kWarp) {
    const float x = to[i], y = to[i + a.half];
    to[i] = x * cosines[i] - y * sines[i];
    to[i + a.half] = y * cosines[i] + x * sines[i];
  }
}

template <class T, int kLanes, int kHeads>
__global__ void __launch_bounds__(kThreads, kHeads == 1   ? 4
                                            : kHeads == 2 ? 3
                                                          : 2) attend(const AttendArguments a) {
  constexpr int kKeys = kWarp / kLanes;  // keys that a warp takes at once, of kLanes lanes each
  constexpr int kAhead = sizeof(T) == 2 ? 4 : 2;  // of a lane, whose loads are under way
  DIVE_SHARED(shared);
  // queries [kHeads][width], new key [width], new value [width]; later each warp's result
  // [kWarps][kHeads][width + 2]
  float* const queries = reinterpret_cast<float*>(shared);
  float* const new_key = queries + kHeads * a.width;
  float* const new_value = new_key + a.width;
  float* const results = new_value + a.width;
  unsigned* const last = reinterpret_cast<unsigned*>(results + kWarps * kHeads * (a.width + 2));

  const int group = a.query_heads / a.kv_heads, tiles = (group + kHeads - 1) / kHeads;
  const int kv_head = blockIdx.y / tiles, tile = blockIdx.y % tiles;
  const int heads = min(kHeads, group - tile * kHeads);  // of this block
  const int first_head = kv_head * group + tile * kHeads;
  const int row = a.rows[blockIdx.z];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  let_next_start();

  // Lengths are of the step before, and so is every key but this step's own: before the wait.
  const int length = a.lengths[row];
  const int own = length % a.slots, tokens = min(length + 1, a.slots);
  const int least = max(kLeastShare, (tokens + a.splits - 1) / a.splits);
  const int share = (least + kWarps * kKeys - 1) / (kWarps * kKeys) * (kWarps * kKeys);
  const int shares = (tokens + share - 1) / share;
  const int begin = static_cast<int>(blockIdx.x) * share, end = min(tokens, begin + share);
  const int column = lane % kLanes * 8;
  const bool inside = column < a.width;
  const std::int64_t at = (static_cast<std::int64_t>(row) * a.kv_heads + kv_head) * a.slots;
  T* const keys = static_cast<T*>(a.keys) + at * a.width;
  T* const values = static_cast<T*>(a.values) + at * a.width;
  Eight<T> key[kAhead], value[kAhead];
  const auto load = [&](int u, int token) {
    const bool here = inside && token < end && token != own;
    const std::int64_t from = static_cast<std::int64_t>(token) * a.width + column;
    key[u] = here ? load_eight(keys + from) : Eight<T>{};
    value[u] = here ? load_eight(values + from) : Eight<T>{};
  };
  const int first_token = begin + warp * kKeys + lane / kLanes;
#pragma unroll
  for (int u = 0; u < kAhead; ++u) load(u, first_token + u * kWarps * kKeys);
  wait_for_previous();
  if (begin >= tokens) return;

  const std::int64_t stride = static_cast<std::int64_t>(a.query_heads + 2 * a.kv_heads) * a.width;
  const float* const mine = a.heads + blockIdx.z * stride;
  const float* const cosines = a.cosines + static_cast<std::int64_t>(a.positions[row]) * a.half;
  const float* const sines = a.sines + static_cast<std::int64_t>(a.positions[row]) * a.half;
  for (int h = warp; h <= kHeads; h += kWarps) {
    if (h == kHeads) {
      prepare_head<T>(a, mine + (a.query_heads + kv_head) * a.width, a.key_norm, cosines, sines,
                      new_key);
    } else if (h < heads) {
      prepare_head<T>(a, mine + (first_head + h) * a.width, a.query_norm, cosines, sines,
                      queries + h * a.width);
    } else {
      for (int i = lane; i < a.width; i += kWarp) queries[h * a.width + i] = 0;
    }
  }
  __syncthreads();
  const bool append = tile == 0 && begin <= own && own < end;
  for (int i = threadIdx.x; i < a.width; i += kThreads) {
    const T key = from_float<T>(new_key[i]);
    const T value = from_float<T>(mine[(a.query_heads + a.kv_heads + kv_head) * a.width + i]);
    new_key[i] = to_float(key);
    new_value[i] = to_float(value);
    if (append) {
      keys[static_cast<std::int64_t>(own) * a.width + i] = key;
      values[static_cast<std::int64_t>(own) * a.width + i] = value;
    }
  }
  __syncthreads();

  float query[kHeads][8];
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
#pragma unroll
    for (int i = 0; i < 8; ++i) query[h][i] = inside ? queries[h * a.width + column + i] : 0.0f;
  }
  Running running[kHeads];
  constexpr int kStep = kAhead * kWarps * kKeys;
  // all lanes of a warp take part in each sum, so they leave together
  for (int base = first_token; base - lane / kLanes < end; base += kStep) {
    float score[kHeads][kAhead];
#pragma unroll
    for (int u = 0; u < kAhead; ++u) {
      const int token = base + u * kWarps * kKeys;
      float k[8];
      unpack(key[u], k);
      if (token == own && inside) {  // from this step: other blocks' writes are not waited for
#pragma unroll
        for (int i = 0; i < 8; ++i) k[i] = new_key[column + i];
      }
#pragma unroll
      for (int h = 0; h < kHeads; ++h) {
        float sum = 0;
#pragma unroll
        for (int i = 0; i < 8; ++i) sum = fmaf(query[h][i], k[i], sum);
#pragma unroll
        for (int distance = kLanes / 2; distance > 0; distance /= 2) {
          sum += __shfl_xor_sync(kFullWarp, sum, distance);
        }
        sum *= a.scale;
        if (a.softcap > 0) sum = a.softcap * tanhf(sum / a.softcap);
        score[h][u] = token < end ? sum : -INFINITY;
      }
    }
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      float high = running[h].largest;
#pragma unroll
      for (int u = 0; u < kAhead; ++u) high = fmaxf(high, score[h][u]);
      running[h].rise(high);
    }
#pragma unroll
    for (int u = 0; u < kAhead; ++u) {
      const int token = base + u * kWarps * kKeys;
      float v[8];
      unpack(value[u], v);
      if (token == own && inside) {
#pragma unroll
        for (int i = 0; i < 8; ++i) v[i] = new_value[column + i];
      }
#pragma unroll
      for (int h = 0; h < kHeads; ++h) running[h].add(score[h][u], v);
      load(u, token + kStep);
    }
  }
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
#pragma unroll
    for (int distance = kLanes; distance < kWarp; distance *= 2) running[h].merge_lane(distance);
    float* const result = results + (warp * kHeads + h) * (a.width + 2);
    if (lane < kLanes && inside) {
#pragma unroll
      for (int i = 0; i < 8; ++i) result[2 + column + i] = running[h].mixed[i];
    }
    if (lane == 0) {
      result[0] = running[h].largest;
      result[1] = running[h].sum;
    }
  }
  __syncthreads();

  // the warps' results to one, and where there are more shares, these to one
  T* const out = static_cast<T*>(a.out) +
                 (static_cast<std::int64_t>(blockIdx.z) * a.query_heads + first_head) * a.width;
  float* const own_shares =
      a.shares + (static_cast<std::int64_t>(blockIdx.z) * a.query_heads + first_head) * a.splits *
                     (a.width + 2);
  const auto combine = [&](const float* parts, int count, int step, int i, float* sums) {
    float high = kNothing;
    for (int p = 0; p < count; ++p) high = fmaxf(high, parts[p * step]);
    sums[0] = high;
    sums[1] = sums[2] = 0;
    for (int p = 0; p < count; ++p) {
      const float factor = expf(parts[p * step] - high);
      sums[1] = fmaf(parts[p * step + 1], factor, sums[1]);
      sums[2] = fmaf(parts[p * step + 2 + i], factor, sums[2]);
    }
  };
  for (int j = threadIdx.x; j < heads * a.width; j += kThreads) {
    const int h = j / a.width, i = j % a.width;
    float sums[3];
    combine(results + h * (a.width + 2), kWarps, kHeads * (a.width + 2), i, sums);
    if (shares == 1) {
      out[j] = from_float<T>(sums[2] / sums[1]);
    } else {
      float* const part = own_shares + (h * a.splits + blockIdx.x) * (a.width + 2);
      part[2 + i] = sums[2];
      if (i == 0) {
        part[0] = sums[0];
        part[1] = sums[1];
      }
    }
  }
  if (shares == 1) return;
  __threadfence();
  __syncthreads();
  unsigned* const arrived = a.arrived + blockIdx.z * gridDim.y + blockIdx.y;
  if (threadIdx.x == 0) *last = atomicAdd(arrived, 1u) + 1 == static_cast<unsigned>(shares);
  __syncthreads();
  if (*last == 0) return;
  __threadfence();
  if (threadIdx.x == 0) *arrived = 0;
  for (int j = threadIdx.x; j < heads * a.width; j += kThreads) {
    const int h = j / a.width, i = j % a.width;
    float sums[3];
    combine(own_shares + h * a.splits * (a.width + 2), shares, a.width + 2, i, sums);
    out[j] = from_float<T>(sums[2] / sums[1]);
  }
}

template <class T, int kLanes, int kHeads>
void run(const Queue& queue, const AttendArguments& a, int count) {
  Shape shape;
  shape.grid = dim3(static_cast<unsigned>(a.splits),
                    static_cast<unsigned>(head_groups(a.query_heads, a.kv_heads)),
                    static_cast<unsigned>(count));
  shape.threads = kThreads;
  shape.shared =
      ((kHeads + 2) * a.width + kWarps * kHeads * (a.width + 2)) * sizeof(float) + sizeof(unsigned);
  launch(queue, shape, attend<T, kLanes, kHeads>, a);
}

template <class T, int kLanes>
void run(const Queue& queue, const AttendArguments& a, int count) {
  switch (heads_of_block(a.query_heads / a.kv_heads)) {
    case 1: return run<T, kLanes, 1>(queue, a, count);
    case 2: return run<T, kLanes, 2>(queue, a, count);
    default: return run<T, kLanes, 4>(queue, a, count);
  }
}

template <class T>
void run(const Queue& queue, const AttendArguments& a, int count) {
  if (a.width <= 64) return run<T, 8>(queue, a, count);
  if (a.width <= 128) return run<T, 16>(queue, a, count);
  run<T, 32>(queue, a, count);
}

template <class T>
__global__ void adopt(const AdoptArguments a) {
  wait_for_previous();
  const int head = blockIdx.y, which = blockIdx.z;
  const T* const from = static_cast<const T*>(a.source[which]) + head * a.head_stride[which];
  T* const to =
      static_cast<T*>(a.cache[which]) + static_cast<std::int64_t>(head) * a.slots * a.width;
  for (int t = blockIdx.x; t < a.count; t += gridDim.x) {
    const std::int64_t slot = (a.first + t) % a.slots;
    for (int i = threadIdx.x; i < a.width; i += blockDim.x) {
      to[slot * a.width + i] = from[t * a.token_stride[which] + i];
    }
  }
}

}  // namespace

int head_groups(int query_heads, int kv_heads) {
  const int group = query_heads / kv_heads, heads = heads_of_block(group);
  return kv_heads * ((group + heads - 1) / heads);
}

int splits_for(int count, int query_heads, int kv_heads, std::int64_t capacity, int processors) {
  const int blocks = count * head_groups(query_heads, kv_heads);
  const auto most =
      static_cast<int>(std::min<std::int64_t>(64, (capacity + kLeastShare - 1) / kLeastShare));
  return std::clamp((2 * processors + blocks - 1) / blocks, 1, most);
}

void run_attention(const Queue& queue, DType dtype, const AttendArguments& a, int count) {
  switch (dtype) {
    case DType::f32: return run<float>(queue, a, count);
    case DType::bf16: return run<BFloat16>(queue, a, count);
    case DType::f16: return run<Half>(queue, a, count);
  }
}

void run_adopt(const Queue& queue, DType dtype, const AdoptArguments& a) {
  Shape shape;
  shape.grid =
      dim3(static_cast<unsigned>(std::min(a.count, 1024)), static_cast<unsigned>(a.kv_heads), 2);
  shape.threads = 64;
  switch (dtype) {
    case DType::f32: return launch(queue, shape, adopt<float>, a);
    case DType::bf16: return launch(queue, shape, adopt<BFloat16>, a);
    case DType::f16: return launch(queue, shape, adopt<Half>, a);
  }
}

}  // namespace dive::cuda
