#include "cpu/steering.h"

#include <atomic>

namespace dive::cpu {
namespace {

std::uint64_t next_id() {
  static std::atomic<std::uint64_t> last{0};
  return ++last;
}

template <class T>
void pack(const Steering& packed, const SteeringSource& source, T* down, T* up) {
  for (std::int64_t r = 0; r < source.rank; ++r) {
    for (std::int64_t i = 0; i < source.width; ++i) {
      down[packed.down_index(r, i)] = from_float<T>(source.down.at(r, i));
      up[packed.up_index(r, i)] = from_float<T>(source.up.at(i, r));
    }
  }
}

}  // namespace

float MatrixView::at(std::int64_t row, std::int64_t column) const {
  const std::int64_t index = row * row_stride + column * column_stride;
  switch (dtype) {
    case DType::bf16: return to_float(static_cast<const BFloat16*>(data)[index]);
    case DType::f16: return to_float(static_cast<const Half*>(data)[index]);
    case DType::f32: break;
  }
  return static_cast<const float*>(data)[index];
}

Steering::Steering(const SteeringSource& source)
    : id_(next_id()),
      rank_(source.rank),
      width_(source.width),
      dtype_(source.down.dtype),
      down_bias_(static_cast<std::size_t>(padded_rank())),
      fixed_(static_cast<std::size_t>(padded_width(source.width))),
      scale_(source.scale),
      eps_(source.eps),
      activation_(source.activation),
      norm_preserving_(source.norm_preserving) {
  const auto numbers = static_cast<std::size_t>(padded_rank() * padded_width(width_));
  const std::size_t bytes = numbers * static_cast<std::size_t>(size_of(dtype_));
  down_.grow(bytes);
  up_.grow(bytes);
  for (std::int64_t r = 0; r < rank_; ++r) down_bias_.data()[r] = source.down_bias.at(0, r);
  for (std::int64_t i = 0; i < width_; ++i) fixed_.data()[i] = source.fixed.at(0, i);
  if (rank_ == 0) return;
  void* const down = down_.data();
  void* const up = up_.data();
  switch (dtype_) {
    case DType::f32: pack(*this, source, static_cast<float*>(down), static_cast<float*>(up)); break;
    case DType::bf16:
      pack(*this, source, static_cast<BFloat16*>(down), static_cast<BFloat16*>(up));
      break;
    case DType::f16: pack(*this, source, static_cast<Half*>(down), static_cast<Half*>(up)); break;
  }
}

std::int64_t Steering::bytes() const {
  return static_cast<std::int64_t>(down_.size() + up_.size() +
                                   (down_bias_.size() + fixed_.size()) * sizeof(float));
}

}  // namespace dive::cpu
