// The layout of the keys and values of all sequences in one allocation:
// [layer][key, value][slot][kv head][cell][head width]. A cell holds one token.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "decoder.h"

namespace dive {

class CacheLayout {
 public:
  CacheLayout() = default;
  // std::runtime_error where no memory could hold it.
  CacheLayout(const DecoderSpec& spec, std::int64_t slots, std::int64_t capacity)
      : slots_(slots), kv_heads_(spec.kv_heads), capacity_(capacity) {
    cell_bytes_ = static_cast<std::size_t>(spec.head_width * size_of(spec.dtype));
    const double cell =
        2.0 * static_cast<double>(slots * spec.kv_heads) * static_cast<double>(cell_bytes_);
    double bytes = 0;
    for (const LayerSpec& layer : spec.layers) {
      const bool slides = layer.window > 0 && layer.window < capacity;
      const std::size_t offset = bytes < kMost ? static_cast<std::size_t>(bytes) : 0;
      layers_.push_back({offset, slides ? layer.window : capacity});
      bytes += cell * static_cast<double>(layers_.back().cells);
    }
    if (bytes >= kMost) {
      throw std::runtime_error("out of memory: " + what() + " needs " +
                               std::to_string(static_cast<std::int64_t>(bytes / 0x1p20)) + " MiB");
    }
    bytes_ = static_cast<std::size_t>(bytes);
  }

  std::size_t bytes() const { return bytes_; }
  // The purpose of the memory, for messages.
  std::string what() const {
    return "the cache of " + std::to_string(slots_) + " sequences of " + std::to_string(capacity_) +
           " tokens";
  }
  // Cells that a layer has per slot: token t lies in cell t % cells, which a sliding window reuses.
  std::int64_t cells(std::size_t layer) const { return layers_[layer].cells; }
  // The byte at which the keys (which = 0) or values (1) of a slot's head begin.
  std::size_t at(std::size_t layer, int which, std::int64_t slot, std::int64_t head = 0) const {
    const Layer& own = layers_[layer];
    const auto heads = static_cast<std::size_t>((which * slots_ + slot) * kv_heads_ + head);
    return own.offset + heads * static_cast<std::size_t>(own.cells) * cell_bytes_;
  }

 private:
  static constexpr double kMost = 0x1p47;  // what a process can address
  struct Layer {
    std::size_t offset;
    std::int64_t cells;
  };
  std::vector<Layer> layers_;
  std::int64_t slots_ = 0;
  std::int64_t kv_heads_ = 0;
  std::int64_t capacity_ = 0;
  std::size_t cell_bytes_ = 0;  // of one head
  std::size_t bytes_ = 0;
};

}  // namespace dive
