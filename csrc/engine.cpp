#include "engine.h"

namespace dive {

void Engine::set_ropes(std::vector<RopeSpec> ropes) {
  spec_.ropes = std::move(ropes);
  backend_->set_ropes(spec_.ropes);
}

void Engine::reserve(std::int64_t slots, std::int64_t capacity) {
  slots_ = capacity_ = 0;  // until all of it is allocated
  backend_->reserve(slots, capacity);
  length_.assign(static_cast<std::size_t>(slots), 0);
  position_.assign(static_cast<std::size_t>(slots), 0);
  slots_ = slots;
  capacity_ = capacity;
}

void Engine::start_slot(std::int64_t slot, std::int64_t length, std::int64_t position) {
  length_[static_cast<std::size_t>(slot)] = length;
  position_[static_cast<std::size_t>(slot)] = position;
  backend_->start_slot(slot, length, position);
}

void Engine::step(const std::int64_t* tokens, const std::int64_t* slots, std::int64_t count,
                  std::int64_t* next, float* logits) {
  StepInput input;
  input.tokens = tokens;
  input.slots = slots;
  input.count = count;
  input.next = next;
  input.logits = logits;
  input.lengths = length_.data();
  input.positions = position_.data();
  backend_->run(input, [this] { schedule(); });
  for (std::int64_t i = 0; i < count; ++i) {
    ++length_[static_cast<std::size_t>(slots[i])];
    ++position_[static_cast<std::size_t>(slots[i])];
  }
}

void Engine::schedule() {
  Backend& kernels = *backend_;
  kernels.embed();
  kernels.add_and_norm({false, {}, -1, spec_.layers[0].before_attention});
  for (std::size_t l = 0; l < spec_.layers.size(); ++l) {
    const LayerSpec& layer = spec_.layers[l];
    const bool last = l + 1 == spec_.layers.size();
    kernels.project_heads(layer);
    kernels.attend(l);
    kernels.project_attention(layer);
    kernels.add_and_norm({true, layer.after_attention, -1, layer.before_mlp});
    kernels.gated(layer);
    kernels.project_mlp(layer);
    kernels.add_and_norm({true, layer.after_mlp, static_cast<std::int64_t>(l),
                          last ? spec_.final_norm : spec_.layers[l + 1].before_attention});
  }
  kernels.predict();
}

}  // namespace dive
