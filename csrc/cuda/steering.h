// One layer's steering weights in a GPU's memory.
#pragma once

#include <cstdint>

#include "../steering.h"
#include "cuda/add_and_norm.h"
#include "cuda/runtime.h"

namespace dive::cuda {

// Copied from memory of the same GPU, where `down` and the transposed `up` lie without gaps and the
// vectors in float32.
class DeviceSteering final : public Steering {
 public:
  DeviceSteering(const SteeringSource& source, int device, cudaStream_t stream)
      : Steering(source, device) {
    const std::int64_t matrix = source.rank * source.width * size_of(dtype());
    const OnDevice here(device);
    memory_.grow(static_cast<std::size_t>(2 * matrix + (source.rank + source.width) *
                                                           std::int64_t{sizeof(float)}),
                 "an adapter");
    unsigned char* end = memory_.data();
    const auto copy = [&](const void* from, std::int64_t bytes) {
      const auto count = static_cast<std::size_t>(bytes);
      if (count > 0) {
        check(cudaMemcpyAsync(end, from, count, cudaMemcpyDeviceToDevice, stream),
              "copy of an adapter");
      }
      end += bytes;
      return end - bytes;
    };
    view_.down = copy(source.down.data, matrix);
    view_.up = copy(source.up.data, matrix);
    view_.fixed = reinterpret_cast<float*>(copy(source.fixed, source.width * 4));
    view_.down_bias = reinterpret_cast<float*>(copy(source.down_bias, source.rank * 4));
    check(cudaStreamSynchronize(stream), "copy of an adapter");
    view_.scale = scale();
    view_.eps = eps();
    view_.rank = static_cast<int>(rank());
    view_.activation = activation();
    view_.norm_preserving = norm_preserving();
  }
  const SteerView& view() const { return view_; }
  std::int64_t bytes() const override { return static_cast<std::int64_t>(memory_.size()); }

 private:
  Buffer<unsigned char> memory_;
  SteerView view_;
};

}  // namespace dive::cuda
