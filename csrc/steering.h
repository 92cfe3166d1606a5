// One layer's steering: the weights as they are given, and the base of their copies on a device.
#pragma once

#include <cstdint>

#include "dtype.h"

namespace dive {

enum class Activation { silu, gelu, tanh, identity };

constexpr int kMaxRank = 128;  // as dive/errors/checks.py has it

// A matrix in the memory of some device; strides in elements.
struct MatrixView {
  const void* data = nullptr;
  std::int64_t row_stride = 0;
  std::int64_t column_stride = 0;
};

struct SteeringSource {
  std::int64_t rank = 0;
  std::int64_t width = 0;
  DType dtype = DType::f32;          // of `down` and `up`
  MatrixView down;                   // [rank, width]
  const float* down_bias = nullptr;  // [rank]
  MatrixView up;                     // [width, rank]
  const float* fixed = nullptr;      // [width]
  float scale = 0;
  float eps = 0;
  Activation activation = Activation::silu;
  bool norm_preserving = false;
};

constexpr int kHost = -1;  // instead of the number of a GPU

// A copy of the weights in the form that one device's kernels read, which later changes of the
// source do not reach. csrc/cpu/steering.h and csrc/cuda/steering.h derive from it.
class Steering {
 public:
  virtual ~Steering() = default;
  Steering(const Steering&) = delete;
  Steering& operator=(const Steering&) = delete;

  std::int64_t rank() const { return rank_; }
  std::int64_t width() const { return width_; }
  DType dtype() const { return dtype_; }
  float scale() const { return scale_; }
  float eps() const { return eps_; }
  Activation activation() const { return activation_; }
  bool norm_preserving() const { return norm_preserving_; }
  int device() const { return device_; }
  virtual std::int64_t bytes() const = 0;

 protected:
  Steering(const SteeringSource& source, int device)
      : rank_(source.rank),
        width_(source.width),
        dtype_(source.dtype),
        scale_(source.scale),
        eps_(source.eps),
        activation_(source.activation),
        norm_preserving_(source.norm_preserving),
        device_(device) {}

 private:
  std::int64_t rank_;
  std::int64_t width_;
  DType dtype_;
  float scale_;
  float eps_;
  Activation activation_;
  bool norm_preserving_;
  int device_;
};

}  // namespace dive
