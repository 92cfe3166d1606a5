#include "cpu/steering.h"

#include <algorithm>

namespace dive::cpu {

template <class T>
void PackedSteering::pack(const SteeringSource& source) {
  T* const down = reinterpret_cast<T*>(down_.data());
  T* const up = reinterpret_cast<T*>(up_.data());
  const auto at = [](const MatrixView& view, std::int64_t row, std::int64_t column) {
    return static_cast<const T*>(view.data)[row * view.row_stride + column * view.column_stride];
  };
  for (std::int64_t r = 0; r < source.rank; ++r) {
    const std::int64_t group =
        r / kGroup * kGroup * padded_width(source.width) + r % kGroup * kPanel;
    for (std::int64_t i = 0; i < source.width; ++i) {
      const std::int64_t panel = i / kPanel, column = i % kPanel;
      down[group + panel * kGroup * kPanel + column] = at(source.down, r, i);
      up[(panel * padded_rank() + r) * kPanel + column] = at(source.up, i, r);
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
  std::copy_n(source.down_bias, rank(), down_bias_.data());
  std::copy_n(source.fixed, width(), fixed_.data());
  if (dtype() == DType::bf16) {
    pack<BFloat16>(source);
  } else {
    pack<float>(source);
  }
}

std::int64_t PackedSteering::bytes() const {
  return static_cast<std::int64_t>(down_.size() + up_.size() +
                                   (down_bias_.size() + fixed_.size()) * sizeof(float));
}

}  // namespace dive::cpu
