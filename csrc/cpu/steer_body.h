// [residual add + steering + RMSNorm] over a vector of 16 floats. Included once by each instruction
// set's source file, inside that set's own namespace, which has defined
//   DIVE_TARGET   the target attribute of its functions
//   Vec           16 floats: load, store, splat, +, fma, rounding to a stored format
//   kChains       independent sums per dot product, which hide the latency of an fma
// No include guard: being included several times is its purpose.

constexpr std::int64_t kLanes = 16;

template <class T>
DIVE_TARGET inline Vec load_some(const T* from, std::int64_t count) {
  T whole[kLanes] = {};
  std::memcpy(whole, from, static_cast<std::size_t>(count) * sizeof(T));
  return Vec::load(whole);
}

template <class T>
DIVE_TARGET inline void store_some(Vec value, T* to, std::int64_t count) {
  T whole[kLanes];
  value.store(whole);
  std::memcpy(to, whole, static_cast<std::size_t>(count) * sizeof(T));
}

// A row to float32, the rest of its last panel zero.
template <class T>
DIVE_TARGET void load_row(const T* from, float* row, std::int64_t width) {
  std::int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) Vec::load(from + i).store(row + i);
  if (i < width) {
    load_some(from + i, width - i).store(row + i);
    i += kLanes;
  }
  for (; i < padded_width(width); i += kLanes) Vec::splat(0.0f).store(row + i);
}

// residual = round(residual + delta), and the same to `row` in float32.
template <class T>
DIVE_TARGET void add_row(T* residual, const T* delta, float* row, std::int64_t width) {
  std::int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) {
    const Vec sum = (Vec::load(residual + i) + Vec::load(delta + i)).template rounded<T>();
    sum.store(residual + i);
    sum.store(row + i);
  }
  if (i < width) {
    const std::int64_t rest = width - i;
    const Vec sum =
        (load_some(residual + i, rest) + load_some(delta + i, rest)).template rounded<T>();
    store_some(sum, residual + i, rest);
    sum.store(row + i);
    i += kLanes;
  }
  for (; i < padded_width(width); i += kLanes) Vec::splat(0.0f).store(row + i);
}

// residual = row = round(row * factor). The factor 1 changes no bit.
template <class T>
DIVE_TARGET void round_row(float* row, T* residual, float factor, std::int64_t width) {
  const Vec times = Vec::splat(factor);
  std::int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) {
    const Vec value = (Vec::load(row + i) * times).template rounded<T>();
    value.store(residual + i);
    value.store(row + i);
  }
  if (i < width) {
    const Vec value = (Vec::load(row + i) * times).template rounded<T>();
    store_some(value, residual + i, width - i);
    value.store(row + i);
  }
}

// Always summed in the same order, so that equal rows have equal sums: norm_preserving relies on
// it.
DIVE_TARGET inline float sum_of_squares(const float* row, std::int64_t padded) {
  Vec sums[4] = {Vec::splat(0.0f), Vec::splat(0.0f), Vec::splat(0.0f), Vec::splat(0.0f)};
  for (std::int64_t i = 0; i < padded; i += 4 * kLanes) {
    for (int k = 0; k < 4; ++k) {
      const Vec x = Vec::load(row + i + k * kLanes);
      sums[k] = fma(x, x, sums[k]);
    }
  }
  return ((sums[0] + sums[1]) + (sums[2] + sums[3])).sum();
}

// dots[r] = down[r] . row
template <class T>
DIVE_TARGET void down_products(const PackedSteering& steering, const float* row, float* dots) {
  constexpr std::int64_t group = PackedSteering::kGroup, panel = PackedSteering::kPanel;
  const std::int64_t padded = padded_width(steering.width());
  const T* weights = static_cast<const T*>(steering.down());
  for (std::int64_t r = 0; r < steering.padded_rank(); r += group) {
    Vec sums[group][kChains];
    for (auto& chains : sums) {
      for (auto& sum : chains) sum = Vec::splat(0.0f);
    }
    for (std::int64_t i = 0; i < padded; i += panel, weights += group * panel) {
      for (int k = 0; k < panel / kLanes; ++k) {
        const Vec x = Vec::load(row + i + k * kLanes);
        for (int g = 0; g < group; ++g) {
          Vec& sum = sums[g][k % kChains];
          sum = fma(Vec::load(weights + g * panel + k * kLanes), x, sum);
        }
      }
    }
    for (int g = 0; g < group; ++g) {
      Vec total = sums[g][0];
      for (int k = 1; k < kChains; ++k) total = total + sums[g][k];
      dots[r + g] = total.sum();
    }
  }
}

// row += scale * (up mixing + fixed)
template <class T>
DIVE_TARGET void add_residual(const PackedSteering& steering, const float* mixing, float* row) {
  constexpr int parts = PackedSteering::kPanel / kLanes;
  const std::int64_t padded = padded_width(steering.width()), ranks = steering.padded_rank();
  const Vec scale = Vec::splat(steering.scale());
  const T* weights = static_cast<const T*>(steering.up());
  for (std::int64_t i = 0; i < padded; i += PackedSteering::kPanel) {
    Vec sums[parts];
    for (int k = 0; k < parts; ++k) sums[k] = Vec::load(steering.fixed() + i + k * kLanes);
    for (std::int64_t r = 0; r < ranks; ++r, weights += PackedSteering::kPanel) {
      const Vec z = Vec::splat(mixing[r]);
      for (int k = 0; k < parts; ++k) {
        sums[k] = fma(Vec::load(weights + k * kLanes), z, sums[k]);
      }
    }
    for (int k = 0; k < parts; ++k) {
      float* const x = row + i + k * kLanes;
      fma(scale, sums[k], Vec::load(x)).store(x);
    }
  }
}

// `row` and `residual` hold r at the start and r' at the end.
template <class T>
DIVE_TARGET void steer_row(const PackedSteering& steering, T* residual, Workspace& space) {
  float* const row = space.row();
  float* const mixing = space.mixing();
  const std::int64_t width = steering.width(), padded = padded_width(width);
  const float squares = sum_of_squares(row, padded);
  const float inverse_rms = 1.0f / std::sqrt(squares / static_cast<float>(width) + steering.eps());
#ifdef DIVE_HAS_BF16_DOT
  if constexpr (std::is_same_v<T, BFloat16>) {
    down_products_bf16(steering, row, space.short_row(), mixing);
  } else {
    down_products<T>(steering, row, mixing);
  }
#else
  down_products<T>(steering, row, mixing);
#endif
  for (std::int64_t r = 0; r < steering.rank(); ++r) {
    mixing[r] = mixing[r] * inverse_rms + steering.down_bias()[r];
  }
  activate(steering.activation(), mixing, steering.rank());
  add_residual<T>(steering, mixing, row);
  float factor = 1.0f;
  if (steering.norm_preserving()) {
    const float after = sum_of_squares(row, padded);
    // a result without direction cannot be given a norm: ratio 1, as in dive/reference.py
    if (after > 0.0f) factor = std::sqrt(squares) / std::sqrt(after);
  }
  round_row(row, residual, factor, width);
}

template <class T, bool plus_one>
DIVE_TARGET inline Vec normed(Vec x, Vec inverse_rms, Vec weight) {
  if constexpr (plus_one) return x * inverse_rms * (Vec::splat(1.0f) + weight);
  return (x * inverse_rms).template rounded<T>() * weight;
}

template <class T, class N, bool plus_one>
DIVE_TARGET void norm_row(const float* row, const N* weight, T* out, float eps,
                          std::int64_t width) {
  const float squares = sum_of_squares(row, padded_width(width));
  const Vec inverse_rms = Vec::splat(1.0f / std::sqrt(squares / static_cast<float>(width) + eps));
  std::int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) {
    normed<T, plus_one>(Vec::load(row + i), inverse_rms, Vec::load(weight + i)).store(out + i);
  }
  if (i < width) {
    const Vec last = load_some(weight + i, width - i);
    store_some(normed<T, plus_one>(Vec::load(row + i), inverse_rms, last), out + i, width - i);
  }
}

template <class T, class N>
DIVE_TARGET void norm_row(const StepArguments& step, const float* row, T* out) {
  const N* const weight = static_cast<const N*>(step.norm_weight);
  if (step.norm_plus_one) {
    norm_row<T, N, true>(row, weight, out, step.norm_eps, step.width);
  } else {
    norm_row<T, N, false>(row, weight, out, step.norm_eps, step.width);
  }
}

template <class T>
DIVE_TARGET void step_rows(const StepArguments& step, Workspace& space) {
  space.prepare(step.width);
  float* const row = space.row();
  for (std::int64_t b = 0; b < step.rows; ++b) {
    T* const residual = static_cast<T*>(step.residual) + b * step.residual_stride;
    if (step.delta != nullptr) {
      const T* const delta = static_cast<const T*>(step.delta) + b * step.delta_stride;
      add_row(residual, delta, row, step.width);
    } else {
      load_row(residual, row, step.width);
    }
    const PackedSteering* const steering = step.steerings != nullptr ? step.steerings[b] : nullptr;
    if (steering != nullptr) steer_row<T>(*steering, residual, space);
    if (step.out != nullptr) {
      T* const out = static_cast<T*>(step.out) + b * step.out_stride;
      if (step.norm_dtype == dtype_of<T>::value) {
        norm_row<T, T>(step, row, out);
      } else {
        norm_row<T, float>(step, row, out);
      }
    }
  }
}
