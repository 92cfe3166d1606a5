// One KV-cached decode step of a Llama-like decoder.
//
// What a device must bring are the kernels; the order in which they run is the same everywhere.
// This is the schedule on a CPU; its place on a GPU is csrc/cuda.
//
// The engine reads the model's weights where they lie and owns the cache and the scratch memory. It
// keeps nothing alive: whoever made the `ModelSpec` does.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <utility>
#include <vector>

#include "cpu/aligned.h"
#include "cpu/decode_kernels.h"
#include "cpu/steer_step.h"
#include "number.h"

namespace dive {

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
  std::int64_t half = 0;  // numbers of a head that are rotated, halved
};

struct LayerSpec {
  NormSpec before_attention, after_attention, before_mlp, after_mlp;
  LinearSpec query, key, value, output, gate, up, down;
  NormSpec query_norm, key_norm;
  std::int64_t window = 0;  // positions seen, the own one included; 0: all
  std::size_t rope = 0;     // index into ModelSpec::ropes
};

struct ModelSpec {
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
  cpu::Gate gate = cpu::Gate::silu;
  LinearSpec embedding;  // [vocabulary, width]; no bias
  LinearSpec head;       // [vocabulary, width]
  NormSpec final_norm;
  std::vector<RopeSpec> ropes;
  std::vector<LayerSpec> layers;
};

class Engine {
 public:
  explicit Engine(ModelSpec spec);

  const ModelSpec& spec() const { return spec_; }
  std::int64_t rows() const { return rows_; }
  std::int64_t capacity() const { return capacity_; }
  std::int64_t cache_bytes() const;

  // Tables for more positions; the old ones are no longer read.
  void set_ropes(std::vector<RopeSpec> ropes) { spec_.ropes = std::move(ropes); }

  // Room for `rows` sequences of `capacity` tokens; all are empty and unsteered afterwards.
  void reserve(std::int64_t rows, std::int64_t capacity);

  // `count` keys and values [kv_heads, count, head_width] of the model's dtype, in elements'
  // strides, into the cache of a row and a layer, from token `first` on.
  struct Source {
    const void* data;
    std::int64_t head_stride, token_stride;
  };
  void adopt(std::int64_t layer, std::int64_t row, std::int64_t first, std::int64_t count,
             const Source& keys, const Source& values);

  // The row holds `length` tokens, and its next one has the position `position`.
  void start_row(std::int64_t row, std::int64_t length, std::int64_t position);
  std::int64_t length(std::int64_t row) const { return length_[static_cast<std::size_t>(row)]; }
  std::int64_t position(std::int64_t row) const { return position_[static_cast<std::size_t>(row)]; }

  // One steering or null a layer for this row. All are of float32 or of the model's dtype, all
  // alike.
  void steer_row(std::int64_t row, std::vector<const cpu::Steering*> layers);

  // Runs `tokens[i]` as the next token of row `rows[i]`; the most likely token after it goes to
  // `next[i]` and, where `logits` is given, all logits to logits[rows[i] * vocabulary ...].
  // The caller has checked tokens, rows (each at most once) and room.
  void step(const std::int64_t* tokens, const std::int64_t* rows, std::int64_t count,
            std::int64_t* next, float* logits);

 private:
  void run_layer(std::size_t index, const std::int64_t* rows, std::int64_t count);
  void attend(std::size_t index, const std::int64_t* rows, std::int64_t count);
  void multiply(const LinearSpec& linear, const void* x, std::int64_t x_stride, float* y,
                std::int64_t count);
  // delta = round(linear(from)), normed where there is a norm after it.
  void project_back(const LinearSpec& linear, const float* from, const NormSpec& after,
                    std::int64_t count);
  cpu::StepArguments step_arguments(const NormSpec& norm, std::int64_t count) const;
  void add_and_norm(bool add, const cpu::Steering* const* steerings, const NormSpec& norm,
                    std::int64_t count);
  // Rows as a product takes them; valid until the next call.
  const void* model_input(const void* from, std::int64_t width, std::int64_t count);
  const void* float_input(const float* from, std::int64_t width, std::int64_t count);
  unsigned char* cache_at(std::size_t layer, int which, std::int64_t row, std::int64_t head);

  ModelSpec spec_;
  const cpu::DecodeKernels* kernels_ = nullptr;
  cpu::Isa isa_ = cpu::Isa::scalar;
  DType steering_dtype_ = DType::f32;
  std::int64_t rows_ = 0;
  std::int64_t capacity_ = 0;
  std::vector<std::int64_t> length_, position_;
  std::vector<std::vector<const cpu::Steering*>> steering_;  // [row][layer], empty: none
  std::vector<const cpu::Steering*> layer_steering_;         // of the rows of this step

  struct Free {
    void operator()(unsigned char* pointer) const { std::free(pointer); }
  };
  std::unique_ptr<unsigned char, Free> cache_;  // [layer][key, value][row][head][token][head_width]
  std::size_t cache_bytes_ = 0;

  cpu::AlignedBuffer<unsigned char> residual_, normed_, delta_, input_;
  cpu::AlignedBuffer<float> wide_, query_, key_, value_, mixed_, gate_, up_, scores_, logits_;
  cpu::Workspace workspace_;
};

}  // namespace dive
