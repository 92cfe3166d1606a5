// Steering weights in a GPU's memory: each packed `Steering` is copied once, for as long as a row
// uses it.
#pragma once

#include <cstdint>
#include <cstring>
#include <iterator>
#include <map>
#include <memory>
#include <vector>

#include "cpu/steering.h"
#include "cuda/add_and_norm.h"
#include "cuda/runtime.h"

namespace dive::cuda {

// One layer's steering weights on the device.
class DeviceSteering {
 public:
  DeviceSteering(const cpu::Steering& from, cudaStream_t stream) {
    const auto rank = static_cast<std::size_t>(from.rank());
    const auto width = static_cast<std::size_t>(from.width());
    const auto item = static_cast<std::size_t>(size_of(from.dtype()));
    const std::size_t matrix = rank * width * item, floats = (rank + width) * sizeof(float);
    std::vector<unsigned char> host(2 * matrix + floats);
    const auto copy = [&](std::size_t to, const void* source, std::int64_t index) {
      std::memcpy(
          host.data() + to * item,
          static_cast<const unsigned char*>(source) + static_cast<std::size_t>(index) * item, item);
    };
    for (std::size_t r = 0; r < rank; ++r) {
      for (std::size_t i = 0; i < width; ++i) {
        const auto row = static_cast<std::int64_t>(r), column = static_cast<std::int64_t>(i);
        copy(r * width + i, from.down(), from.down_index(row, column));
        copy((rank + r) * width + i, from.up(), from.up_index(row, column));
      }
    }
    std::memcpy(host.data() + 2 * matrix, from.fixed(), width * sizeof(float));
    std::memcpy(host.data() + 2 * matrix + width * sizeof(float), from.down_bias(),
                rank * sizeof(float));
    memory_.grow(host.size(), "an adapter");
    check(cudaMemcpyAsync(memory_.data(), host.data(), host.size(), cudaMemcpyHostToDevice, stream),
          "copy of an adapter");
    check(cudaStreamSynchronize(stream), "copy of an adapter");
    view_.down = memory_.data();
    view_.up = memory_.data() + matrix;
    view_.fixed = reinterpret_cast<const float*>(memory_.data() + 2 * matrix);
    view_.down_bias = view_.fixed + width;
    view_.scale = from.scale();
    view_.eps = from.eps();
    view_.rank = static_cast<int>(rank);
    view_.activation = from.activation();
    view_.norm_preserving = from.norm_preserving();
  }
  const SteerView& view() const { return view_; }

 private:
  Buffer<unsigned char> memory_;
  SteerView view_;
};

class KnownSteerings {
 public:
  std::shared_ptr<DeviceSteering> get(const cpu::Steering& steering, cudaStream_t stream) {
    std::weak_ptr<DeviceSteering>& known = known_[steering.id()];
    std::shared_ptr<DeviceSteering> found = known.lock();
    if (found == nullptr) known = found = std::make_shared<DeviceSteering>(steering, stream);
    return found;
  }
  void forget_unused() {
    for (auto it = known_.begin(); it != known_.end();) {
      it = it->second.expired() ? known_.erase(it) : std::next(it);
    }
  }

 private:
  std::map<std::uint64_t, std::weak_ptr<DeviceSteering>> known_;  // by Steering::id
};

}  // namespace dive::cuda
