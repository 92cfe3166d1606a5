// The interface of a device to the decode step: its memory, and the kernels whose order
// csrc/engine.cpp defines. csrc/cpu/backend.h and csrc/cuda/backend.h implement it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "decoder.h"
#include "steering.h"

namespace dive {

// The choice of a step whose logits are unusable. Either the largest is not finite: a NaN is larger
// than any number, so this is any NaN, any +inf, or -inf everywhere. Or all are the same: an RMS
// norm makes zeros of states whose squares are infinite.
constexpr std::int64_t kNoToken = -1;

// One step: token tokens[i] is the next one of the sequence in slot slots[i].
struct StepInput {
  const std::int64_t* tokens = nullptr;  // in device memory, as `next` and `logits`
  const std::int64_t* slots = nullptr;   // in host memory, as the rest; no slot twice
  std::int64_t count = 0;
  std::int64_t* next = nullptr;             // the most likely token after each, or kNoToken
  float* logits = nullptr;                  // [reserved slots, vocabulary], or null
  const std::int64_t* lengths = nullptr;    // by slot: tokens in the cache
  const std::int64_t* positions = nullptr;  // by slot: of the token that is run
};

// `count` keys or values [kv_heads, count, head_width] of the model's dtype; strides in elements.
struct CacheSource {
  const void* data = nullptr;
  std::int64_t head_stride = 0;
  std::int64_t token_stride = 0;
};

// residual += delta (normed first, where `delta_norm` has a weight), steered after layer
// `steer_after`; then the norm of it, which the next product reads.
struct AddAndNorm {
  bool add = true;
  NormSpec delta_norm;
  std::int64_t steer_after = -1;  // -1: no steering here
  NormSpec norm;
};

class Backend {
 public:
  Backend() = default;
  Backend(const Backend&) = delete;
  Backend& operator=(const Backend&) = delete;
  virtual ~Backend() = default;

  // The host threads that share the work of a step; 1 where a device does it.
  virtual int threads() const { return 1; }
  virtual void set_threads(int) {}

  // The stream for all later work, on a device that has streams.
  virtual void use_stream(void*) {}

  virtual std::int64_t cache_bytes() const = 0;
  // Memory for `slots` sequences of `capacity` tokens, unsteered; what was in the cache is lost.
  virtual void reserve(std::int64_t slots, std::int64_t capacity) = 0;
  virtual void set_ropes(const std::vector<RopeSpec>& ropes) = 0;
  // Writes tokens `first` to `first + count` of a slot's cache, for one layer.
  virtual void copy_cache(std::size_t layer, std::int64_t slot, std::int64_t first,
                          std::int64_t count, const CacheSource& keys,
                          const CacheSource& values) = 0;
  virtual void start_slot(std::int64_t slot, std::int64_t length, std::int64_t position) = 0;
  // One steering or null per layer, of this device; they live as long as they are in use here.
  // Empty: none.
  virtual void steer_slot(std::int64_t slot, const std::vector<const Steering*>& layers) = 0;

  // Runs the kernels that `schedule` calls: by calling it, or as recorded at an earlier step.
  virtual void run(const StepInput& input, const std::function<void()>& schedule) = 0;

  // The kernels, in the order in which a step first needs them.
  virtual void embed() = 0;
  virtual void add_and_norm(const AddAndNorm& what) = 0;
  virtual void project_heads(const LayerSpec& layer) = 0;  // query, key and value
  virtual void attend(std::size_t layer) = 0;              // head norms, RoPE, append, attention
  virtual void project_attention(const LayerSpec& layer) = 0;
  virtual void gated(const LayerSpec& layer) = 0;  // act(gate) * up
  virtual void project_mlp(const LayerSpec& layer) = 0;
  virtual void predict() = 0;  // logits, rounded to the model's dtype, and their argmax
};

}  // namespace dive
