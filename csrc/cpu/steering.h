// One layer's steering weights, packed in the order in which the kernels of a CPU read them.
#pragma once

#include <cstdint>

#include "../steering.h"
#include "cpu/aligned.h"

namespace dive::cpu {

// Columns are padded with zeros to whole panels of kPanel, ranks to whole groups of kGroup, so no
// kernel has a remainder to treat. `down` lies as [rank group][panel][kGroup][kPanel] and `up` as
// [panel][padded rank][kPanel]: both are read once, from front to back.
class PackedSteering final : public Steering {
 public:
  static constexpr std::int64_t kPanel = 64;
  static constexpr std::int64_t kGroup = 4;

  explicit PackedSteering(const SteeringSource& source);

  std::int64_t padded_rank() const { return (rank() + kGroup - 1) / kGroup * kGroup; }
  const void* down() const { return down_.data(); }
  const void* up() const { return up_.data(); }
  const float* down_bias() const { return down_bias_.data(); }
  const float* fixed() const { return fixed_.data(); }
  std::int64_t bytes() const override;

 private:
  template <class T>
  void pack(const SteeringSource& source);

  AlignedBuffer<unsigned char> down_;
  AlignedBuffer<unsigned char> up_;
  AlignedBuffer<float> down_bias_;
  AlignedBuffer<float> fixed_;
};

constexpr std::int64_t padded_width(std::int64_t width) {
  return (width + PackedSteering::kPanel - 1) / PackedSteering::kPanel * PackedSteering::kPanel;
}

}  // namespace dive::cpu
