// One KV-cached decode step of a Llama-like decoder: the order of its kernels, which is the same on
// every device, and the length of each sequence.
//
// The engine reads the model's weights in place; its backend owns the cache and the scratch memory.
// It keeps no weight alive: the maker of the `DecoderSpec` does.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "backend.h"
#include "decoder.h"

namespace dive {

class Engine {
 public:
  // The backend was made for a copy of the same spec.
  Engine(DecoderSpec spec, std::unique_ptr<Backend> backend)
      : spec_(std::move(spec)), backend_(std::move(backend)) {}

  const DecoderSpec& spec() const { return spec_; }
  std::int64_t slots() const { return slots_; }
  std::int64_t capacity() const { return capacity_; }
  std::int64_t cache_bytes() const { return backend_->cache_bytes(); }
  int threads() const { return backend_->threads(); }
  void set_threads(int count) { backend_->set_threads(count); }

  void use_stream(void* stream) { backend_->use_stream(stream); }

  // Tables for more positions; the old ones are no longer read.
  void set_ropes(std::vector<RopeSpec> ropes);

  // Memory for `slots` sequences of `capacity` tokens; all are empty and unsteered afterwards.
  void reserve(std::int64_t slots, std::int64_t capacity);

  // Keys and values into the cache of a slot and a layer, from token `first` on.
  void copy_cache(std::int64_t layer, std::int64_t slot, std::int64_t first, std::int64_t count,
                  const CacheSource& keys, const CacheSource& values) {
    backend_->copy_cache(static_cast<std::size_t>(layer), slot, first, count, keys, values);
  }

  // The slot's sequence holds `length` tokens, and its next one has the position `position`.
  void start_slot(std::int64_t slot, std::int64_t length, std::int64_t position);
  std::int64_t length(std::int64_t slot) const { return length_[static_cast<std::size_t>(slot)]; }
  std::int64_t position(std::int64_t slot) const {
    return position_[static_cast<std::size_t>(slot)];
  }

  // One steering or null per layer for this slot, all of the model's dtype and the backend's
  // device; empty: none.
  void steer_slot(std::int64_t slot, const std::vector<const Steering*>& layers) {
    backend_->steer_slot(slot, layers);
  }

  // Runs `tokens[i]` as the next token of slot `slots[i]`; the most likely token after it goes to
  // `next[i]` and, where `logits` is given, all logits to logits[slots[i] * vocabulary ...].
  // The caller has checked tokens, slots (none twice) and capacity.
  void step(const std::int64_t* tokens, const std::int64_t* slots, std::int64_t count,
            std::int64_t* next, float* logits);

 private:
  void schedule();

  DecoderSpec spec_;
  std::unique_ptr<Backend> backend_;
  std::int64_t slots_ = 0;
  std::int64_t capacity_ = 0;
  std::vector<std::int64_t> length_, position_;
};

}  // namespace dive
