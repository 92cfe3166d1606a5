// The kernels of a decode step over a vector of 16 floats. Included once by each instruction set's
// source file, after steer_body.h and its requirements, and after
//   kBatchTile   sequences per pass over a block of weight rows, as registers allow
//   kRowTile     weight rows of such a block
//   kStreams     weight rows that one sequence alone is multiplied with at the same time
// No include guard: being included several times is its purpose.

// e^x to about a unit in the last place; e^88 above 88, 1e-38 below -87, NaN for a NaN.
DIVE_TARGET inline Vec exponential(Vec x) {
  x = larger(Vec::splat(-87.33f), smaller(Vec::splat(88.0f), x));  // the second survives a NaN
  const Vec whole = nearest_whole(x * Vec::splat(1.44269504f));
  // ln 2 in two parts, so that the difference keeps its last bits
  Vec r = fma(whole, Vec::splat(-0.693359375f), x);
  r = fma(whole, Vec::splat(2.12194440e-4f), r);
  Vec sum = Vec::splat(1.9875691500e-4f);
  sum = fma(sum, r, Vec::splat(1.3981999507e-3f));
  sum = fma(sum, r, Vec::splat(8.3334519073e-3f));
  sum = fma(sum, r, Vec::splat(4.1665795894e-2f));
  sum = fma(sum, r, Vec::splat(1.6666665459e-1f));
  sum = fma(sum, r, Vec::splat(5.0000001201e-1f));
  sum = fma(sum, r * r, r) + Vec::splat(1.0f);
  return sum * power_of_two(whole);
}

// x / (1 + e^-y)
DIVE_TARGET inline Vec logistic_times(Vec x, Vec y) {
  return x / (Vec::splat(1.0f) + exponential(Vec::splat(0.0f) - y));
}

template <class From, class To>
DIVE_TARGET void convert(const From* from, To* to, std::int64_t count) {
  std::int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) Vec::load(from + i).store(to + i);
  if (i < count) store_some(load_some(from + i, count - i), to + i, count - i);
}

template <class From, class To>
DIVE_TARGET void convert_padded(const void* from_any, void* to_any, std::int64_t count) {
  const From* const from = static_cast<const From*>(from_any);
  To* const to = static_cast<To*>(to_any);
  std::int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) Vec::load(from + i).store(to + i);
  if (i < count) {
    load_some(from + i, count - i).store(to + i);
    i += kLanes;
  }
  for (; i < padded(count); i += kLanes) Vec::splat(0.0f).store(to + i);
}

template <class To>
DIVE_TARGET void input_from_float(const float* from, void* to, std::int64_t count) {
  convert_padded<float, To>(from, to, count);
}

template <class T>
DIVE_TARGET void round_to(const float* from, void* to, std::int64_t count) {
  convert(from, static_cast<T*>(to), count);
}

template <class T>
DIVE_TARGET void scale_row(const void* from_any, float factor, void* to_any, std::int64_t count) {
  const T* const from = static_cast<const T*>(from_any);
  T* const to = static_cast<T*>(to_any);
  const Vec times = Vec::splat(factor);
  std::int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) (Vec::load(from + i) * times).store(to + i);
  if (i < count) store_some(load_some(from + i, count - i) * times, to + i, count - i);
}

// `rows` x `batch` products of float32 input with weights of any format.
template <class W, int rows, int batch>
DIVE_TARGET inline void tile(const W* weight, std::int64_t stride, const float* x,
                             std::int64_t x_stride, std::int64_t columns,
                             float (&dots)[rows][batch]) {
  constexpr int chains = rows * batch >= 8 ? 1 : rows * batch >= 4 ? 2 : 4;
  Vec sums[rows][batch][chains];
  for (auto& row : sums) {
    for (auto& one : row) {
      for (auto& sum : one) sum = Vec::splat(0.0f);
    }
  }
  std::int64_t i = 0;
  for (; i + chains * kLanes <= columns; i += chains * kLanes) {
    for (int c = 0; c < chains; ++c) {
      Vec in[batch];
      for (int b = 0; b < batch; ++b) in[b] = Vec::load(x + b * x_stride + i + c * kLanes);
      for (int r = 0; r < rows; ++r) {
        prefetch_weight(weight + r * stride + i + c * kLanes);
        const Vec w = Vec::load(weight + r * stride + i + c * kLanes);
        for (int b = 0; b < batch; ++b) sums[r][b][c] = fma(w, in[b], sums[r][b][c]);
      }
    }
  }
  for (; i < columns; i += kLanes) {
    const std::int64_t rest = columns - i < kLanes ? columns - i : kLanes;
    for (int r = 0; r < rows; ++r) {
      const Vec w = load_some(weight + r * stride + i, rest);
      for (int b = 0; b < batch; ++b) {
        sums[r][b][0] = fma(w, load_some(x + b * x_stride + i, rest), sums[r][b][0]);
      }
    }
  }
  for (int r = 0; r < rows; ++r) {
    for (int b = 0; b < batch; ++b) {
      Vec total = sums[r][b][0];
      for (int c = 1; c < chains; ++c) total = total + sums[r][b][c];
      dots[r][b] = total.sum();
    }
  }
}

// Weight rows `row`, row + apart, ...
template <class T, class X, int rows, int batch>
DIVE_TARGET void matvec_tile(const Matvec& m, std::int64_t row, std::int64_t column,
                             std::int64_t apart = 1) {
  float dots[rows][batch];
  tile<T, rows, batch>(static_cast<const T*>(m.weight) + row * m.weight_stride,
                       apart * m.weight_stride, static_cast<const X*>(m.x) + column * m.x_stride,
                       m.x_stride, m.columns, dots);
  const T* const bias = static_cast<const T*>(m.bias);
  for (int r = 0; r < rows; ++r) {
    const std::int64_t at = row + r * apart;
    const float more = bias == nullptr ? 0.0f : to_float(bias[at]);
    for (int b = 0; b < batch; ++b) m.y[(column + b) * m.y_stride + at] = dots[r][b] + more;
  }
}

template <class T, class X, int rows>
DIVE_TARGET void matvec_rows(const Matvec& m, std::int64_t row, std::int64_t apart = 1) {
  // rows `row`, row + apart, ...; later passes find them in the L1 cache
  std::int64_t b = 0;
  for (; b + kBatchTile <= m.batch; b += kBatchTile)
    matvec_tile<T, X, rows, kBatchTile>(m, row, b, apart);
  if constexpr (kBatchTile > 4) {
    for (; b + 4 <= m.batch; b += 4) matvec_tile<T, X, rows, 4>(m, row, b, apart);
  }
  if constexpr (kBatchTile > 2) {
    for (; b + 2 <= m.batch; b += 2) matvec_tile<T, X, rows, 2>(m, row, b, apart);
  }
  for (; b < m.batch; ++b) matvec_tile<T, X, rows, 1>(m, row, b, apart);
}

// Reads the rows as several streams at the same time, each from front to back: a single stream
// stalls at the end of each page.
template <class T, class X>
DIVE_TARGET void matvec(const Matvec& m) {
  const std::int64_t rows = m.last - m.first;
  if (m.batch == 1) {
    const std::int64_t apart = rows / kStreams;
    for (std::int64_t row = m.first; row < m.first + apart; ++row) {
      matvec_tile<T, X, kStreams, 1>(m, row, 0, apart);
    }
    for (std::int64_t row = m.first + kStreams * apart; row < m.last; ++row) {
      matvec_tile<T, X, 1, 1>(m, row, 0);
    }
    return;
  }
  const std::int64_t apart = rows / kRowTile;
  for (std::int64_t row = m.first; row < m.first + apart; ++row) {
    matvec_rows<T, X, kRowTile>(m, row, apart);
  }
  for (std::int64_t row = m.first + kRowTile * apart; row < m.last; ++row) {
    matvec_rows<T, X, 1>(m, row);
  }
}

// scores[g][t] = query[g] . keys[t], with scale and soft-cap
template <class T, int group>
DIVE_TARGET void score(const Attention& a, const float* query, float* scores, std::int64_t stride) {
  const T* const keys = static_cast<const T*>(a.keys);
  for (std::int64_t t = 0; t < a.count; ++t) {
    const T* const key = keys + t * a.width;
    Vec sums[group];
    for (Vec& sum : sums) sum = Vec::splat(0.0f);
    std::int64_t i = 0;
    for (; i + kLanes <= a.width; i += kLanes) {
      const Vec k = Vec::load(key + i);
      for (int g = 0; g < group; ++g) sums[g] = fma(Vec::load(query + g * a.width + i), k, sums[g]);
    }
    if (i < a.width) {
      const Vec k = load_some(key + i, a.width - i);
      for (int g = 0; g < group; ++g) {
        sums[g] = fma(load_some(query + g * a.width + i, a.width - i), k, sums[g]);
      }
    }
    for (int g = 0; g < group; ++g) scores[g * stride + t] = sums[g].sum();
  }
}

// Scores to weights that sum to 1; the rest of the last vector becomes 0.
DIVE_TARGET inline void softmax(float* scores, std::int64_t count, float scale, float softcap) {
  const std::int64_t whole = (count + kLanes - 1) / kLanes * kLanes;
  Vec most = Vec::splat(-std::numeric_limits<float>::infinity());
  for (std::int64_t t = count; t < whole; ++t) scores[t] = scores[0];
  for (std::int64_t t = 0; t < whole; t += kLanes) {
    Vec x = Vec::load(scores + t) * Vec::splat(scale);
    if (softcap > 0) {  // c tanh(x / c) = c - 2c / (1 + e^(2x/c))
      const Vec cap = Vec::splat(softcap);
      x = cap - logistic_times(cap + cap, Vec::splat(-2.0f / softcap) * x);
    }
    x.store(scores + t);
    most = larger(most, x);
  }
  float lanes[kLanes];
  most.store(lanes);
  float highest = lanes[0];
  for (const float lane : lanes) highest = lane > highest ? lane : highest;
  Vec sums = Vec::splat(0.0f);
  for (std::int64_t t = 0; t < whole; t += kLanes) {
    exponential(Vec::load(scores + t) - Vec::splat(highest)).store(scores + t);
  }
  for (std::int64_t t = count; t < whole; ++t) scores[t] = 0.0f;
  for (std::int64_t t = 0; t < whole; t += kLanes) sums = sums + Vec::load(scores + t);
  const Vec inverse = Vec::splat(1.0f / sums.sum());
  for (std::int64_t t = 0; t < whole; t += kLanes) {
    (Vec::load(scores + t) * inverse).store(scores + t);
  }
}

// out[g][0..16 parts) = sum over t of weights[g][t] * values[t], for one span of columns
template <class T, int group, int parts>
DIVE_TARGET void mix(const Attention& a, const float* weights, std::int64_t stride,
                     std::int64_t column, float* out) {
  const T* const values = static_cast<const T*>(a.values) + column;
  Vec sums[group][parts];
  for (auto& row : sums) {
    for (Vec& sum : row) sum = Vec::splat(0.0f);
  }
  for (std::int64_t t = 0; t < a.count; ++t) {
    const T* const value = values + t * a.width;
    Vec v[parts];
    for (int p = 0; p < parts; ++p) v[p] = Vec::load(value + p * kLanes);
    for (int g = 0; g < group; ++g) {
      const Vec w = Vec::splat(weights[g * stride + t]);
      for (int p = 0; p < parts; ++p) sums[g][p] = fma(w, v[p], sums[g][p]);
    }
  }
  for (int g = 0; g < group; ++g) {
    for (int p = 0; p < parts; ++p) sums[g][p].store(out + g * a.width + column + p * kLanes);
  }
}

template <class T>
DIVE_TARGET void mix_rest(const Attention& a, const float* weights, std::int64_t column,
                          float* out) {
  const std::int64_t rest = a.width - column;
  const T* const values = static_cast<const T*>(a.values) + column;
  Vec sum = Vec::splat(0.0f);
  for (std::int64_t t = 0; t < a.count; ++t) {
    sum = fma(Vec::splat(weights[t]), load_some(values + t * a.width, rest), sum);
  }
  store_some(sum, out + column, rest);
}

template <class T, int group>
DIVE_TARGET void attend_group(const Attention& a, std::int64_t head) {
  const std::int64_t count = a.count, stride = score_stride(count);
  float* const scores = a.scores;
  float* const out = a.out + head * a.width;
  score<T, group>(a, a.query + head * a.width, scores, stride);
  for (int g = 0; g < group; ++g) softmax(scores + g * stride, count, a.scale, a.softcap);
  std::int64_t column = 0;
  for (; column + 4 * kLanes <= a.width; column += 4 * kLanes) {
    mix<T, group, 4>(a, scores, stride, column, out);
  }
  for (; column + kLanes <= a.width; column += kLanes) {
    mix<T, group, 1>(a, scores, stride, column, out);
  }
  if (column < a.width) {
    for (int g = 0; g < group; ++g) mix_rest<T>(a, scores + g * stride, column, out + g * a.width);
  }
}

template <class T>
DIVE_TARGET void attend(const Attention& a) {
  std::int64_t head = 0;
  for (; head + kHeadTile <= a.group; head += kHeadTile) attend_group<T, kHeadTile>(a, head);
  if constexpr (kHeadTile > 2) {
    for (; head + 2 <= a.group; head += 2) attend_group<T, 2>(a, head);
  }
  for (; head < a.group; ++head) attend_group<T, 1>(a, head);
}

DIVE_TARGET inline Vec activated(Gate act, Vec x) {
  if (act == Gate::silu) return logistic_times(x, x);
  if (act == Gate::gelu_tanh) {  // 0.5 x (1 + tanh(u)) = x / (1 + e^-2u)
    const Vec cube = x * x * x;
    const Vec u = fma(cube, Vec::splat(0.044715f), x) * Vec::splat(0.79788456080286536f);
    return logistic_times(x, u + u);
  }
  float lanes[kLanes];
  x.store(lanes);
  for (float& lane : lanes) lane *= 0.5f * (1.0f + std::erf(lane * 0.70710678118654752f));
  return Vec::load(lanes);
}

DIVE_TARGET void gate_rows(Gate act, float* gate, const float* up, std::int64_t count) {
  std::int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    (activated(act, Vec::load(gate + i)) * Vec::load(up + i)).store(gate + i);
  }
  if (i < count) {
    const std::int64_t rest = count - i;
    store_some(activated(act, load_some(gate + i, rest)) * load_some(up + i, rest), gate + i, rest);
  }
}

template <class T>
DIVE_TARGET std::int64_t finish_logits(float* logits, float softcap, std::int64_t count) {
  if (softcap > 0) {  // rounded after every operation, as separate operators round
    for (std::int64_t i = 0; i < count; ++i) {
      float x = to_float(from_float<T>(logits[i]));
      x = to_float(from_float<T>(x / softcap));
      x = to_float(from_float<T>(std::tanh(x)));
      logits[i] = to_float(from_float<T>(x * softcap));
    }
  }
  Vec most = Vec::splat(-std::numeric_limits<float>::infinity());
  float highest = -std::numeric_limits<float>::infinity();
  std::int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const Vec x = Vec::load(logits + i).template rounded<T>();
    x.store(logits + i);
    most = larger(most, x);
  }
  for (; i < count; ++i) {
    logits[i] = to_float(from_float<T>(logits[i]));
    if (logits[i] > highest) highest = logits[i];
  }
  float lanes[kLanes];
  most.store(lanes);
  for (const float lane : lanes) highest = lane > highest ? lane : highest;
  // as torch.argmax: the first of equals, and a NaN is larger than any number
  std::int64_t best = -1;
  for (i = 0; i < count; ++i) {
    if (logits[i] != logits[i]) return i;
    if (best < 0 && logits[i] == highest) best = i;
  }
  return best < 0 ? 0 : best;
}

const Kernels& kernels_of(DType model) {
#ifdef DIVE_HAS_BF16_DOT
  using Narrow = BFloat16;
#else
  using Narrow = float;
#endif
  static const Kernels full{DType::f32,
                            std::lcm(kRowTile, kStreams),
                            matvec<float, float>,
                            convert_padded<float, float>,
                            input_from_float<float>,
                            round_to<float>,
                            scale_row<float>,
                            attend<float>,
                            gate_rows,
                            finish_logits<float>,
                            step_rows<float>};
  static const Kernels half{dtype_of<Narrow>::value,
                            std::lcm(kRowTile, kStreams),
                            matvec<BFloat16, Narrow>,
                            convert_padded<BFloat16, Narrow>,
                            input_from_float<Narrow>,
                            round_to<BFloat16>,
                            scale_row<BFloat16>,
                            attend<BFloat16>,
                            gate_rows,
                            finish_logits<BFloat16>,
                            step_rows<BFloat16>};
  return model == DType::bf16 ? half : full;
}
