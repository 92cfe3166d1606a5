// The kernels of a decode step on a CPU: matrix times several vectors, RoPE, attention over the
// cache, the gate of the MLP, what follows the head, and [residual add + steering + RMSNorm].
//
// `T` below is the model's dtype. Between the products everything is float32, and rounded to `T`
// where it enters a product or the cache.
#pragma once

#include <cstdint>

#include "cpu/aligned.h"
#include "cpu/isa.h"
#include "cpu/steering.h"
#include "decoder.h"
#include "dtype.h"

namespace dive::cpu {

// y[b][r] = weight[r] . x[b] + bias[r], for r from `first` to `last`.
struct Matvec {
  const void* weight = nullptr;    // T, [rows, columns], each row's numbers one after another
  std::int64_t weight_stride = 0;  // elements from row to row
  std::int64_t columns = 0;
  const void* bias = nullptr;  // T, or null
  // Of the kernel's `input` format. Each row is followed by zeros to a whole number of kPad.
  const void* x = nullptr;
  std::int64_t x_stride = 0;
  std::int64_t batch = 0;
  float* y = nullptr;
  std::int64_t y_stride = 0;
  std::int64_t first = 0;
  std::int64_t last = 0;
};

constexpr std::int64_t kPad = 64;

constexpr std::int64_t padded(std::int64_t count) { return (count + kPad - 1) / kPad * kPad; }

// Prefetches a weight well before its use: the hardware prefetcher stops at each page of 4 KiB.
// Past the end of a matrix this does nothing.
constexpr std::int64_t kAheadBytes = 2048;

inline void prefetch_weight(const void* weight) {
  __builtin_prefetch(static_cast<const char*>(weight) + kAheadBytes);
}

// The q heads that share one kv head, of one sequence, over its cache.
struct Attention {
  const float* query = nullptr;  // [group, width]
  std::int64_t group = 0;
  std::int64_t width = 0;
  const void* keys = nullptr;    // T, [positions, width]
  const void* values = nullptr;  // T, [positions, width]
  std::int64_t count = 0;        // positions, in any order
  float scale = 1;
  float softcap = 0;        // 0: none
  float* scores = nullptr;  // scratch of group * score_stride(count)
  float* out = nullptr;     // [group, width]
};

constexpr std::int64_t score_stride(std::int64_t positions) { return padded(positions); }

// [residual add + steering + RMSNorm], row by row, with `round` to T where transformers rounds:
//   r   = round(residual + delta)                                (residual, where delta is null)
//   r'  = round(r + scale * (up phi(down r/rms(r) + bias) + fixed))   (r, where not steered)
//   out = rmsnorm(r')
// r' replaces the residual. Everything between the roundings is float32.
struct StepArguments {
  std::int64_t rows = 0;
  std::int64_t width = 0;
  void* residual = nullptr;
  std::int64_t residual_stride = 0;  // elements from row to row, as the strides below
  const void* delta = nullptr;       // null: nothing is added
  std::int64_t delta_stride = 0;
  // one for each row, each of T and this width; a null row is not steered, and a null array steers
  // none
  const PackedSteering* const* steerings = nullptr;
  void* out = nullptr;  // null: no norm is taken
  std::int64_t out_stride = 0;
  const void* norm_weight = nullptr;
  DType norm_dtype = DType::f32;  // float32 or T
  float norm_eps = 0;
  // false, as Llama: weight * round(r'/rms);  true, as Gemma: round(r'/rms * (1 + weight))
  bool norm_plus_one = false;
};

// Scratch memory for one row; each thread has its own.
class Workspace {
 public:
  void prepare(std::int64_t width) {
    row_.grow(static_cast<std::size_t>(padded_width(width)));
    mixing_.grow(kMaxRank);
    short_row_.grow(static_cast<std::size_t>(padded_width(width)));
  }
  float* row() { return row_.data(); }
  float* mixing() { return mixing_.data(); }
  BFloat16* short_row() { return short_row_.data(); }

 private:
  AlignedBuffer<float> row_;
  AlignedBuffer<float> mixing_;
  AlignedBuffer<BFloat16> short_row_;
};

// The kernels of one instruction set for one T.
struct Kernels {
  DType input;  // what `Matvec::x` holds: float32, or T where products of T are in the instructions
  // Parts of a product that begin at multiples of this have the same bits as the whole.
  std::int64_t row_tile;
  void (*matvec)(const Matvec&);
  // Rows of `x` from T or float32 to `input`, with zeros after them.
  void (*input_from_model)(const void* from, void* to, std::int64_t count);
  void (*input_from_float)(const float* from, void* to, std::int64_t count);
  void (*round)(const float* from, void* to, std::int64_t count);               // to T
  void (*scale)(const void* from, float factor, void* to, std::int64_t count);  // T to T
  void (*attend)(const Attention&);
  // gate[i] = act(gate[i]) * up[i]
  void (*gate)(Gate act, float* gate, const float* up, std::int64_t count);
  // Rounds logits to T as transformers does, soft-cap included, and returns their argmax.
  std::int64_t (*finish_logits)(float* logits, float softcap, std::int64_t count);
  void (*step)(const StepArguments&, Workspace&);
};

// For float32 and bfloat16.
const Kernels& kernels_of(Isa isa, DType model);

namespace scalar {
const Kernels& kernels_of(DType model);
}
namespace avx2 {
const Kernels& kernels_of(DType model);
}
namespace avx512 {
const Kernels& kernels_of(DType model);
}
namespace avx512_bf16 {
const Kernels& kernels_of(DType model);
}

// phi of the first `count` numbers, in place.
void activate(Activation activation, float* values, std::int64_t count);

// One head in place: RMSNorm with `weight` where one is given, then RoPE in halves over the first
// 2 * half numbers.
struct HeadNorm {
  const void* weight = nullptr;  // [width], null: no norm
  DType dtype = DType::f32;
  float eps = 0;
  bool plus_one = false;
};
void norm_head(const HeadNorm& norm, float* head, std::int64_t width);
void rotate_head(const float* cosines, const float* sines, std::int64_t half, float* head);

}  // namespace dive::cpu
