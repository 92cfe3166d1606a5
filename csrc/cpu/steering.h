// One layer's steering weights, packed in the order in which the kernels read them.
#pragma once

#include <cstdint>

#include "cpu/aligned.h"
#include "dtype.h"

namespace dive::cpu {

enum class Activation { silu, gelu, tanh, identity };

// A matrix or a vector somewhere in memory; strides in elements.
struct MatrixView {
  const void* data = nullptr;
  DType dtype = DType::f32;
  std::int64_t row_stride = 0;
  std::int64_t column_stride = 0;
  float at(std::int64_t row, std::int64_t column) const;
};

struct SteeringSource {
  std::int64_t rank = 0;
  std::int64_t width = 0;
  MatrixView down;       // [rank, width]
  MatrixView down_bias;  // [1, rank]
  MatrixView up;         // [width, rank], of the dtype of `down`
  MatrixView fixed;      // [1, width]
  float scale = 0;
  float eps = 0;
  Activation activation = Activation::silu;
  bool norm_preserving = false;
};

// The weights are copied: what happens to the source afterwards does not matter.
//
// Columns are padded with zeros to whole panels of kPanel, ranks to whole groups of kGroup, so no
// kernel has a remainder to treat. `down` lies as [rank group][panel][kGroup][kPanel] and `up` as
// [panel][padded rank][kPanel]: both are read once, from front to back.
class Steering {
 public:
  static constexpr std::int64_t kPanel = 64;
  static constexpr std::int64_t kGroup = 4;
  static constexpr std::int64_t kMaxRank = 128;

  explicit Steering(const SteeringSource& source);

  std::int64_t rank() const { return rank_; }
  std::int64_t width() const { return width_; }
  std::int64_t padded_rank() const { return (rank_ + kGroup - 1) / kGroup * kGroup; }
  DType dtype() const { return dtype_; }
  const void* down() const { return down_.data(); }
  const void* up() const { return up_.data(); }
  const float* down_bias() const { return down_bias_.data(); }
  const float* fixed() const { return fixed_.data(); }
  float scale() const { return scale_; }
  float eps() const { return eps_; }
  Activation activation() const { return activation_; }
  bool norm_preserving() const { return norm_preserving_; }
  std::int64_t bytes() const;
  // No other Steering of the process ever has the same.
  std::uint64_t id() const { return id_; }

  // Where down[r, i] and up[i, r] lie in the packed weights, in numbers.
  std::int64_t down_index(std::int64_t r, std::int64_t i) const;
  std::int64_t up_index(std::int64_t r, std::int64_t i) const;

 private:
  std::uint64_t id_;
  std::int64_t rank_;
  std::int64_t width_;
  DType dtype_;
  AlignedBuffer<unsigned char> down_;
  AlignedBuffer<unsigned char> up_;
  AlignedBuffer<float> down_bias_;
  AlignedBuffer<float> fixed_;
  float scale_;
  float eps_;
  Activation activation_;
  bool norm_preserving_;
};

constexpr std::int64_t padded_width(std::int64_t width) {
  return (width + Steering::kPanel - 1) / Steering::kPanel * Steering::kPanel;
}

inline std::int64_t Steering::down_index(std::int64_t r, std::int64_t i) const {
  const std::int64_t tile =
      r / kGroup * kGroup * padded_width(width_) + i / kPanel * kGroup * kPanel;
  return tile + r % kGroup * kPanel + i % kPanel;
}

inline std::int64_t Steering::up_index(std::int64_t r, std::int64_t i) const {
  return (i / kPanel * padded_rank() + r) * kPanel + i % kPanel;
}

}  // namespace dive::cpu
