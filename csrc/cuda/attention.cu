// Of one query head of one sequence:
//
//   q = turn(norm(query)), and for this step's token k = turn(norm(key)) and v, which are appended
//   score_t = scale q . k_t, soft-capped where the model does
//   out = sum_t e^(score_t) v_t / sum_t e^(score_t)
//
// with RMSNorm where the model has it for heads, RoPE, and t over the tokens that the cache holds.
//
// A softmax over a part of the tokens is kept as its largest score, the sum of e^(score - largest),
// and the values mixed with these; such parts add up to that of all. The parts are those of some
// lanes, then of a warp, then of a block (its share of the tokens), and the last block adds up the
// shares.
#include "cuda/attention.h"

#include <algorithm>

#include "cuda/rope.cuh"
#include "cuda/softmax.cuh"

namespace dive::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarp;
constexpr int kLeastShare = 64;         // tokens, below which a block does not pay
constexpr int kMostShares = 2 * kWarp;  // per sequence: a warp weighs them, two per lane

int heads_of_block(int group) { return group >= 3 ? 4 : group; }

// The block's shared memory.
template <class T, int kHeads>
struct Shared {
  float* queries;  // [kHeads + 1][width]: behind them scratch for the key
  Parts warps;     // [kHeads][kWarps]
  float* factors;  // [kHeads][kMostShares]
  T* new_key;      // [width]
  T* new_value;    // [width]
  unsigned* last;  // whether this is the sequence's last block

  __device__ Shared(unsigned char* memory, int width) {
    queries = reinterpret_cast<float*>(memory);
    warps.mixed = queries + (kHeads + 1) * width;
    warps.totals = reinterpret_cast<Total*>(warps.mixed + kHeads * kWarps * width);
    warps.capacity = kWarps;
    factors = reinterpret_cast<float*>(warps.totals + kHeads * kWarps);
    new_key = reinterpret_cast<T*>(factors + kHeads * kMostShares);
    new_value = new_key + width;
    last = reinterpret_cast<unsigned*>(new_value + width);
  }
  static std::size_t bytes(int width) {
    const int floats = (kHeads + 1 + kHeads * kWarps) * width + kHeads * kMostShares;
    return floats * sizeof(float) + kHeads * kWarps * sizeof(Total) + 2 * width * sizeof(T) +
           sizeof(unsigned);
  }
};

// The work of a block.
struct Work {
  int position;  // of this step's token
  int kv_head;
  std::int64_t first_cell;  // of the head's keys in the cache
  int first_head, heads;    // its query heads
  int shares;               // blocks that share the sequence's tokens
  int begin, end;           // its own share; none where `begin` is not below `end`
  int new_cell;             // of this step's token, which no block reads from the cache
  bool appends;
};

// Shares are multiples of `unit` tokens.
template <int kHeads>
__device__ __forceinline__ Work find_work(const AttendArguments& a, int unit) {
  Work work;
  const int group = a.query_heads / a.kv_heads, tiles = (group + kHeads - 1) / kHeads;
  const int tile = blockIdx.y % tiles;
  work.kv_head = blockIdx.y / tiles;
  work.first_head = work.kv_head * group + tile * kHeads;
  work.heads = min(kHeads, group - tile * kHeads);
  const int slot = a.slots[blockIdx.z];
  work.position = a.positions[slot];
  work.first_cell = (static_cast<std::int64_t>(slot) * a.kv_heads + work.kv_head) * a.cells;
  const int length = a.lengths[slot], tokens = min(length + 1, a.cells);
  const int least = max(kLeastShare, (tokens + a.splits - 1) / a.splits);
  const int share = (least + unit - 1) / unit * unit;
  work.shares = (tokens + share - 1) / share;
  work.begin = static_cast<int>(blockIdx.x) * share;
  work.end = min(tokens, work.begin + share);
  work.new_cell = length % a.cells;
  work.appends = tile == 0 && work.begin <= work.new_cell && work.new_cell < work.end;
  return work;
}

// The queries, and this step's key and value as the cache will hold them, to shared memory; the
// block whose share has their cell appends them to the cache.
template <class T, int kHeads>
__device__ __forceinline__ void prepare(const AttendArguments& a, const Work& work,
                                        const Angles& angles, const Shared<T, kHeads>& shared) {
  static_assert(kHeads <= kWarps);
  const int warp = threadIdx.x / kWarp;
  const bool has_key = warp == kWarps - 1, has_value = warp == kWarps - 2;
  const std::int64_t heads = a.query_heads + 2 * a.kv_heads;
  const float* const queries = a.heads + blockIdx.z * heads * a.width;
  const float* const keys = queries + a.query_heads * a.width;
  const float* const values = keys + a.kv_heads * a.width;
  // all loads of the warp at once: they come from L2
  float query[kColumns] = {}, key[kColumns] = {}, value[kColumns] = {};
  float query_norm_weight[kColumns] = {}, key_norm_weight[kColumns] = {};
  if (warp < work.heads) {
    load_columns(queries + (work.first_head + warp) * a.width, a.width, query);
  }
  if (has_key) load_columns(keys + work.kv_head * a.width, a.width, key);
  if (has_value) load_columns(values + work.kv_head * a.width, a.width, value);
  if (warp < work.heads) load_norm_weight<T>(a, a.query_norm, query_norm_weight);
  if (has_key) load_norm_weight<T>(a, a.key_norm, key_norm_weight);

  if (warp < kHeads) {
    prepare_head(a, angles, a.query_norm.weight != nullptr, query_norm_weight, query,
                 shared.queries + warp * a.width);
  }
  const std::int64_t at = (work.first_cell + work.new_cell) * a.width;
  const auto append = [&](const float (&columns)[kColumns], T* to, void* cache) {
    store_columns(columns, a.width, to);
    if (work.appends) store_columns(columns, a.width, static_cast<T*>(cache) + at);
  };
  if (has_key) {
    float* const prepared = shared.queries + kHeads * a.width;
    prepare_head(a, angles, a.key_norm.weight != nullptr, key_norm_weight, key, prepared);
    load_columns(prepared, a.width, key);
    append(key, shared.new_key, a.keys);
  }
  if (has_value) append(value, shared.new_value, a.values);
}

// A lane's eight columns of the tokens that it takes: kLanes lanes have a token, and a lane has
// the loads of kAhead tokens in flight.
template <class T, int kLanes>
struct Tokens {
  static constexpr int kAhead = sizeof(T) == 2 ? 4 : 2;
  static constexpr int kUnit = kWarps * kWarp / kLanes;  // tokens that the block takes at once
  static constexpr int kStep = kAhead * kUnit;

  const T* keys;
  const T* values;
  int width, end, new_cell;
  int column;
  bool inside;  // whether the head has these columns
  int first;    // the lane's first token
  int warp_first;
  Eight<T> key[kAhead] = {}, value[kAhead] = {};

  __device__ __forceinline__ Tokens(const AttendArguments& a, const Work& work)
      : width(a.width), end(work.end), new_cell(work.new_cell) {
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    column = lane % kLanes * 8;
    inside = column < width;
    keys = static_cast<const T*>(a.keys) + work.first_cell * width + column;
    values = static_cast<const T*>(a.values) + work.first_cell * width + column;
    warp_first = work.begin + warp * (kWarp / kLanes);
    first = warp_first + lane / kLanes;
#pragma unroll
    for (int u = 0; u < kAhead; ++u) {
      const int token = first + u * kUnit;
      if (token == new_cell) continue;
      load(key[u], keys, nullptr, token);
      load(value[u], values, nullptr, token);
    }
  }
  // This step's token is not read from the cache: the write of the block that appends it is not
  // waited for. A branch, and not one load over the other, which would wait for the first.
  __device__ __forceinline__ void load(Eight<T>& to, const T* cached, const T* of_step,
                                       int token) const {
    to = Eight<T>{};
    if (!inside || token >= end) return;
    if (token == new_cell) {
      to = load_eight(of_step + column);
    } else {
      to = load_eight(cached + static_cast<std::int64_t>(token) * width);
    }
  }
  // What could not be loaded before this step's token was there.
  __device__ __forceinline__ void load_new(const T* new_key, const T* new_value) {
#pragma unroll
    for (int u = 0; u < kAhead; ++u) {
      if (first + u * kUnit != new_cell) continue;
      load(key[u], keys, new_key, new_cell);
      load(value[u], values, new_value, new_cell);
    }
  }
};

// q . k, in each of the lanes that have the token.
template <int kLanes>
__device__ __forceinline__ float product_of(const float (&query)[8], const float (&key)[8]) {
  float sum = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) sum = fmaf(query[i], key[i], sum);
#pragma unroll
  for (int distance = kLanes / 2; distance > 0; distance /= 2) {
    sum += __shfl_xor_sync(kFullWarp, sum, distance);
  }
  return sum;
}

// The warp's tokens of the block's share, to shared.warps.
template <class T, int kLanes, int kHeads>
__device__ __forceinline__ void attend_share(const AttendArguments& a, Tokens<T, kLanes>& tokens,
                                             const Shared<T, kHeads>& shared) {
  constexpr int kAhead = Tokens<T, kLanes>::kAhead, kUnit = Tokens<T, kLanes>::kUnit;
  constexpr int kStep = Tokens<T, kLanes>::kStep;
  float query[kHeads][8] = {};
  if (tokens.inside) {
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      unpack(load_eight(shared.queries + h * tokens.width + tokens.column), query[h]);
    }
  }
  tokens.load_new(shared.new_key, shared.new_value);
  Softmax softmax[kHeads];
  // A token's loads for the next round start as soon as its registers are free.
  // All lanes of a warp take part in each sum, so they leave together.
  for (int done = 0; tokens.warp_first + done < tokens.end; done += kStep) {
    float score[kHeads][kAhead];
#pragma unroll
    for (int u = 0; u < kAhead; ++u) {
      const int token = tokens.first + done + u * kUnit;
      float key[8];
      unpack(tokens.key[u], key);
      tokens.load(tokens.key[u], tokens.keys, shared.new_key, token + kStep);
#pragma unroll
      for (int h = 0; h < kHeads; ++h) {
        score[h][u] = a.scale * product_of<kLanes>(query[h], key);
      }
    }
    if (a.softcap > 0) {  // apart, so that no branch keeps the sums above from overlapping
#pragma unroll
      for (int h = 0; h < kHeads; ++h) {
#pragma unroll
        for (int u = 0; u < kAhead; ++u) {
          score[h][u] = a.softcap * tanhf(score[h][u] / a.softcap);
        }
      }
    }
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      float high = softmax[h].largest;
#pragma unroll
      for (int u = 0; u < kAhead; ++u) {
        if (tokens.first + done + u * kUnit >= tokens.end) score[h][u] = -INFINITY;
        high = fmaxf(high, score[h][u]);
      }
      softmax[h].rise(high);
    }
#pragma unroll
    for (int u = 0; u < kAhead; ++u) {
      const int token = tokens.first + done + u * kUnit;
      float value[8];
      unpack(tokens.value[u], value);
      tokens.load(tokens.value[u], tokens.values, shared.new_value, token + kStep);
#pragma unroll
      for (int h = 0; h < kHeads; ++h) softmax[h].add(score[h][u], value);
    }
  }

  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
#pragma unroll
    for (int distance = kLanes; distance < kWarp; distance *= 2) softmax[h].merge_lane(distance);
    const int part = h * kWarps + warp;
    if (lane < kLanes && tokens.inside) {
      float* const mixed = shared.warps.mixed + part * tokens.width + tokens.column;
      const float (&of)[8] = softmax[h].mixed;
      store_four(mixed, {of[0], of[1], of[2], of[3]});
      store_four(mixed + 4, {of[4], of[5], of[6], of[7]});
    }
    if (lane == 0) shared.warps.totals[part] = {softmax[h].largest, softmax[h].sum};
  }
}

// Where the shares of the block's heads are: of all heads of the step first the mixed values.
__device__ __forceinline__ Parts shares_of(const AttendArguments& a, int first_head) {
  const std::int64_t capacity = gridDim.x,
                     heads = static_cast<std::int64_t>(gridDim.z) * a.query_heads;
  const std::int64_t at =
      (static_cast<std::int64_t>(blockIdx.z) * a.query_heads + first_head) * capacity;
  Total* const totals = reinterpret_cast<Total*>(a.shares + heads * capacity * a.width);
  return {a.shares + at * a.width, totals + at, static_cast<int>(capacity)};
}

// Whether all other blocks of these heads have written their shares, which this one then sees.
// Readies the counter for the next layer.
__device__ __forceinline__ bool is_last(const AttendArguments& a, int shares, unsigned* last) {
  unsigned* const arrived = a.arrived + blockIdx.z * gridDim.y + blockIdx.y;
  // The barrier puts the block's writes before the arrival of its thread 0, which releases them all
  // (release is cumulative); the last arrival acquires those of all blocks through the chain of
  // additions, and the second barrier puts it before what the block reads.
  __syncthreads();
  if (threadIdx.x == 0) {
    *last = count_arrival(arrived) + 1 == static_cast<unsigned>(shares);
    if (*last != 0) *arrived = 0;
  }
  __syncthreads();
  return *last != 0;
}

template <class T, int kLanes, int kHeads>
__global__ void __launch_bounds__(kThreads, kHeads == 4 ? 3 : 4) attend(const AttendArguments a) {
  DIVE_SHARED(memory);
  const Shared<T, kHeads> shared(memory, a.width);
  let_next_start();

  // Before the wait, what is of earlier steps or never changes: lengths and positions, the cache
  // but for this step's token, angles and the norms' weights.
  const Work work = find_work<kHeads>(a, Tokens<T, kLanes>::kUnit);
  Tokens<T, kLanes> tokens(a, work);
  const Angles angles(a, work.position);
  if (threadIdx.x / kWarp == 0) prefetch_norm_weight<T>(a, a.query_norm);
  if (threadIdx.x / kWarp == 1) prefetch_norm_weight<T>(a, a.key_norm);
  wait_for_previous();
  if (work.begin >= work.end) return;

  prepare(a, work, angles, shared);
  __syncthreads();
  attend_share(a, tokens, shared);
  __syncthreads();

  T* const out =
      static_cast<T*>(a.out) +
      (static_cast<std::int64_t>(blockIdx.z) * a.query_heads + work.first_head) * a.width;
  const auto finish = [&](int h, int i, const Four<float>& mixed) {
    Four<T> four;
#pragma unroll
    for (int x = 0; x < 4; ++x) four.x[x] = from_float<T>(mixed.x[x]);
    store_four(out + h * a.width + i, four);
  };
  const bool alone = work.shares == 1;
  const Parts shares = shares_of(a, work.first_head);
  const auto keep = [&](int h, int i, const Four<float>& mixed) {
    if (alone) return finish(h, i, mixed);
    store_four(shares.mixed + (h * shares.capacity + static_cast<int>(blockIdx.x)) * a.width + i,
               mixed);
  };
  const Total total = combine<kWarps, kWarps>(shared.warps, kWarps, work.heads, a.width, alone,
                                              shared.factors, keep);
  if (alone) return;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  if (warp < work.heads && lane == 0) shares.totals[warp * shares.capacity + blockIdx.x] = total;
  if (!is_last(a, work.shares, shared.last)) return;
  // as many shares at once as there are registers for; 1000 tokens have 17
  combine<kMostShares, kHeads == 4 ? 32 : 16>(shares, work.shares, work.heads, a.width, true,
                                              shared.factors, finish);
}

template <class T, int kLanes, int kHeads>
void run(const Queue& queue, const AttendArguments& a, int count) {
  Shape shape;
  shape.grid = dim3(static_cast<unsigned>(a.splits),
                    static_cast<unsigned>(head_groups(a.query_heads, a.kv_heads)),
                    static_cast<unsigned>(count));
  shape.threads = kThreads;
  shape.shared = Shared<T, kHeads>::bytes(a.width);
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

}  // namespace

int head_groups(int query_heads, int kv_heads) {
  const int group = query_heads / kv_heads, heads = heads_of_block(group);
  return kv_heads * ((group + heads - 1) / heads);
}

int splits_for(int count, int query_heads, int kv_heads, std::int64_t capacity, int processors) {
  const int blocks = count * head_groups(query_heads, kv_heads);
  const auto most = static_cast<int>(
      std::min<std::int64_t>(kMostShares, (capacity + kLeastShare - 1) / kLeastShare));
  return std::clamp((2 * processors + blocks - 1) / blocks, 1, most);
}

void run_attention(const Queue& queue, DType dtype, const AttendArguments& a, int count) {
  switch (dtype) {
    case DType::f32: return run<float>(queue, a, count);
    case DType::bf16: return run<BFloat16>(queue, a, count);
    case DType::f16: return run<Half>(queue, a, count);
  }
}

}  // namespace dive::cuda
