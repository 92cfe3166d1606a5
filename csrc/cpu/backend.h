// The decode step's kernels on a CPU: float32 and bfloat16 weights, shared by threads.
//
// Every number is computed by the same code in the same order for any number of threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <vector>

#include "../backend.h"
#include "cache_layout.h"
#include "cpu/aligned.h"
#include "cpu/kernels.h"
#include "cpu/threads.h"

namespace dive::cpu {

class CpuBackend final : public Backend {
 public:
  // The least bytes that a chunk of work reads: some microseconds of work, while taking a chunk
  // costs a tenth of one. Tests choose less.
  static constexpr std::int64_t kChunkBytes = 64 << 10;

  explicit CpuBackend(DecoderSpec spec, std::int64_t chunk_bytes = kChunkBytes)
      : spec_(std::move(spec)), chunk_bytes_(chunk_bytes) {
    set_threads(1);
  }

  int threads() const override { return threads_->count(); }
  void set_threads(int count) override;

  std::int64_t cache_bytes() const override { return static_cast<std::int64_t>(cache_bytes_); }
  void reserve(std::int64_t slots, std::int64_t capacity) override;
  void set_ropes(const std::vector<RopeSpec>& ropes) override { spec_.ropes = ropes; }
  void copy_cache(std::size_t layer, std::int64_t slot, std::int64_t first, std::int64_t count,
                  const CacheSource& keys, const CacheSource& values) override;
  void start_slot(std::int64_t, std::int64_t, std::int64_t) override {}
  void steer_slot(std::int64_t slot, const std::vector<const Steering*>& layers) override;

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
  // The rows of a product, divided into the parts that threads take.
  struct Parts {
    std::int64_t rows = 0;
    std::int64_t size = 0;  // rows of a part; the last may have fewer
    std::int64_t count = 0;
    std::int64_t first(std::int64_t part) const { return part * size; }
    std::int64_t last(std::int64_t part) const { return std::min(rows, (part + 1) * size); }
  };
  Parts parts_of(const LinearSpec& linear) const;
  void multiply(const LinearSpec& linear, const void* x, float* y, std::int64_t first,
                std::int64_t last) const;
  // delta = round(linear(from))
  void project_back(const LinearSpec& linear, const float* from);
  // work(i, thread) for each row i of the step; by several threads where rows of `numbers` pay for
  // that
  template <class Work>
  void each_row(std::int64_t numbers, const Work& work);
  void add_and_norm_row(const AddAndNorm& what, std::int64_t i, int thread);
  void attend_head(const LayerSpec& layer, std::size_t index, std::int64_t i, std::int64_t head,
                   int thread);
  StepArguments step_arguments(const NormSpec& norm) const;
  void find_steerings(std::int64_t layer);
  // The rows in the format of a product's input; valid until the next call.
  const void* model_input(const void* from, std::int64_t width);
  const void* float_input(const float* from, std::int64_t width);
  // The scratch memory of one thread.
  struct Scratch {
    Workspace workspace;
    AlignedBuffer<float> scores;
  };
  void grow(Scratch& scratch) const;

  DecoderSpec spec_;
  std::int64_t chunk_bytes_;
  const Kernels* kernels_ = nullptr;
  std::int64_t slots_ = 0;
  std::int64_t capacity_ = 0;
  StepInput step_;
  std::vector<std::vector<const PackedSteering*>> steering_;  // [slot][layer], empty: none
  std::vector<const PackedSteering*> layer_steering_;         // of the rows of this step

  struct Free {
    void operator()(unsigned char* pointer) const { std::free(pointer); }
  };
  std::unique_ptr<unsigned char, Free> cache_;
  CacheLayout layout_;
  std::size_t cache_bytes_ = 0;

  AlignedBuffer<unsigned char> residual_, normed_, delta_, input_;
  AlignedBuffer<float> wide_, query_, key_, value_, mixed_, gate_, up_, logits_;
  std::vector<std::int64_t> best_;  // of each part of the logits, by row
  std::vector<Scratch> scratch_;    // by thread
  std::unique_ptr<Threads> threads_;
};

}  // namespace dive::cpu
