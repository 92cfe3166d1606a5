#include "cpu/steering.h"

namespace dive::cpu {
namespace {

float read(const MatrixView& view, std::int64_t row, std::int64_t column) {
  const std::int64_t index = row * view.row_stride + column * view.column_stride;
  switch (view.dtype) {
    case DType::bf16: return to_float(static_cast<const BFloat16*>(view.data)[index]);
    case DType::f16: return to_float(static_cast<const Half*>(view.data)[index]);
    case DType::f32: break;
  }
  return static_cast<const float*>(view.data)[index];
}

}  // namespace

template <class T>
void PackedSteering::pack(const SteeringSource& source) {
  T* const down = reinterpret_cast<T*>(down_.data());
  T* const up = reinterpret_cast<T*>(up_.data());
  for (std::int64_t r = 0; r < source.rank; ++r) {
    const std::int64_t group =
        r / kGroup * kGroup * padded_width(source.width) + r % kGroup * kPanel;
    for (std::int64_t i = 0; i < source.width; ++i) {
      const std::int64_t panel = i / kPanel, column = i % kPanel;
      down[group + panel * kGroup * kPanel + column] = from_float<T>(read(source.down, r, i));
      up[(panel * padded_rank() + r) * kPanel + column] = from_float<T>(read(source.up, i, r));
    }
  }
}

PackedSteering::PackedSteering(const SteeringSource& source)
    : Steering(source, kHost),
      down_bias_(static_cast<std::size_t>(padded_rank())),
      fixed_(static_cast<std::size_t>(padded_width(source.width))) {
  const std::int64_t bytes = padded_rank() * padded_width(source.width) * size_of(dtype());
  down_.grow(static_cast<std::size_t>(bytes));
  up_.grow(static_cast<std::size_t>(bytes));
  for (std::int64_t r = 0; r < rank(); ++r) down_bias_.data()[r] = read(source.down_bias, 0, r);
  for (std::int64_t i = 0; i < width(); ++i) fixed_.data()[i] = read(source.fixed, 0, i);
  switch (dtype()) {
    case DType::f32: pack<float>(source); break;
    case DType::bf16: pack<BFloat16>(source); break;
    case DType::f16: pack<Half>(source); break;
  }
}

std::int64_t PackedSteering::bytes() const {
  return static_cast<std::int64_t>(down_.size() + up_.size() +
                                   (down_bias_.size() + fixed_.size()) * sizeof(float));
}

}  // namespace dive::cpu
