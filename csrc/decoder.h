// The description of a decoder: its sizes, and pointers to its weights.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "dtype.h"

namespace dive {

enum class Gate { silu, gelu, gelu_tanh };

// How a GPU's products by tensor cores (cuda/tile_product.cu) are divided among its
// multiprocessors; benchmarks/suspicions.py compares them.
enum class TilePlan {
  bytes,       // blocks of 8 warps; as many share a row as keep enough loads in flight
  waves,       // the same; as many as leave the fewest multiprocessors idle at the end
  small,       // as bytes, in blocks of 4 warps, two per multiprocessor
  small_short  // as small, with half of the loads in flight, three per multiprocessor
};

// y = weight x + bias, of the model's dtype.
struct LinearSpec {
  const void* weight = nullptr;  // [rows, columns]
  std::int64_t stride = 0;       // elements from row to row
  std::int64_t rows = 0;
  std::int64_t columns = 0;
  const void* bias = nullptr;  // null: none
};

struct NormSpec {
  const void* weight = nullptr;  // null: there is no such norm
  DType dtype = DType::f32;      // float32 or the model's
};

struct RopeSpec {
  const float* cosines = nullptr;  // [positions, half], of consecutive rows
  const float* sines = nullptr;
  std::int64_t positions = 0;
  std::int64_t half = 0;  // half of the rotated width of a head
};

struct LayerSpec {
  NormSpec before_attention, after_attention, before_mlp, after_mlp;
  LinearSpec query, key, value, output, gate, up, down;
  NormSpec query_norm, key_norm;
  std::int64_t window = 0;  // positions attended to, the own one included; 0: all
  std::size_t rope = 0;     // index into DecoderSpec::ropes
};

struct DecoderSpec {
  DType dtype = DType::f32;
  std::int64_t width = 0;
  std::int64_t heads = 0;
  std::int64_t kv_heads = 0;
  std::int64_t head_width = 0;
  std::int64_t mlp_width = 0;
  float norm_eps = 0;
  bool norm_plus_one = false;  // as Gemma: (1 + weight)
  float attention_scale = 1;
  float attention_softcap = 0;  // 0: none
  float logits_softcap = 0;     // 0: none
  float embedding_scale = 1;
  Gate gate = Gate::silu;
  TilePlan tile_plan = TilePlan::bytes;
  LinearSpec embedding;  // [vocabulary, width]; no bias
  LinearSpec head;       // [vocabulary, width]
  NormSpec final_norm;
  std::vector<RopeSpec> ropes;
  std::vector<LayerSpec> layers;
};

}  // namespace dive
