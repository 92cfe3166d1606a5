// The decode step's kernels on a CPU: float32 and bfloat16 weights.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <vector>

#include "backend.h"
#include "cpu/aligned.h"
#include "cpu/decode_kernels.h"
#include "cpu/steer_step.h"

namespace dive::cpu {

class CpuBackend final : public Backend {
 public:
  explicit CpuBackend(ModelSpec spec) : spec_(std::move(spec)) {}

  std::int64_t cache_bytes() const override { return static_cast<std::int64_t>(cache_bytes_); }
  void reserve(std::int64_t rows, std::int64_t capacity) override;
  void set_ropes(const std::vector<RopeSpec>& ropes) override { spec_.ropes = ropes; }
  void adopt(std::size_t layer, std::int64_t row, std::int64_t first, std::int64_t count,
             const CacheSource& keys, const CacheSource& values) override;
  void start_row(std::int64_t, std::int64_t, std::int64_t) override {}
  void steer_row(std::int64_t row, const std::vector<const Steering*>& layers) override;

  void run(const StepInput& input, const std::function<void()>& schedule) override;
  void embed() override;
  void add_and_norm(const AddAndNorm& what) override;
  void project_heads(const LayerSpec& layer) override;
  void attend(std::size_t layer) override;
  void project_attention(const LayerSpec& layer) override;
  void gated(const LayerSpec& layer) override;
  void project_mlp(const LayerSpec& layer) override;
  void predict() override;

 private:
  void multiply(const LinearSpec& linear, const void* x, std::int64_t x_stride, float* y);
  // delta = round(linear(from))
  void project_back(const LinearSpec& linear, const float* from);
  StepArguments step_arguments(const NormSpec& norm) const;
  const Steering* const* steerings_after(std::int64_t layer);
  // The rows as a product takes them; valid until the next call.
  const void* model_input(const void* from, std::int64_t width);
  const void* float_input(const float* from, std::int64_t width);
  unsigned char* cache_at(std::size_t layer, int which, std::int64_t row, std::int64_t head);

  ModelSpec spec_;
  const DecodeKernels* kernels_ = nullptr;
  Isa isa_ = Isa::scalar;
  DType steering_dtype_ = DType::f32;
  std::int64_t rows_ = 0;
  std::int64_t capacity_ = 0;
  StepInput step_;
  std::vector<std::vector<const Steering*>> steering_;  // [row][layer], empty: none
  std::vector<const Steering*> layer_steering_;         // of the rows of this step

  struct Free {
    void operator()(unsigned char* pointer) const { std::free(pointer); }
  };
  std::unique_ptr<unsigned char, Free> cache_;  // [layer][key, value][row][head][slot][head_width]
  std::vector<std::size_t> cache_offset_;       // bytes, by layer
  std::size_t cache_bytes_ = 0;

  AlignedBuffer<unsigned char> residual_, normed_, delta_, input_;
  AlignedBuffer<float> wide_, query_, key_, value_, mixed_, gate_, up_, scores_, logits_;
  Workspace workspace_;
};

}  // namespace dive::cpu
