// What the two kinds of product share: the weights of a row, and the use of a result.
#pragma once

#include <type_traits>

#include "cuda/linear.h"

namespace dive::cuda {

constexpr int kProductWarps = 8;

__device__ __forceinline__ float activated(Gate gate, float x) {
  if (gate == Gate::silu) return silu(x);
  if (gate == Gate::gelu) return gelu(x);
  return 0.5f * x * (1.0f + tanhf(0.79788456080286536f * (x + 0.044715f * x * x * x)));
}

// Row `row` of the parts together; row 0 for an index past the end, whose result is not used.
template <class T>
struct WeightRow {
  const T* weight;
  float bias;

  __device__ __forceinline__ WeightRow(const Product& p, int row) {
    int at = row < p.rows ? row : 0;
    int part = 0;
    while (part < 2 && at >= p.parts[part].rows) at -= p.parts[part++].rows;
    weight = static_cast<const T*>(p.parts[part].weight) + at * p.parts[part].stride;
    const T* const all = static_cast<const T*>(p.parts[part].bias);
    bias = all == nullptr ? 0.0f : to_float(all[at]);
  }
};

// The results of vector b for the two rows first and second of a lane: for `gated` these are a gate
// and its up, and `first` counts gates.
template <class T, Output kOutput>
__device__ __forceinline__ void store_pair(const Product& p, int b, int first, int second,
                                           float value, float other) {
  if (b >= p.batch) return;
  if constexpr (kOutput == Output::gated) {
    if (first >= p.parts[0].rows) return;
    T* const y = static_cast<T*>(p.y) + static_cast<std::int64_t>(b) * p.y_stride;
    y[first] = from_float<T>(activated(p.gate, value) * other);
  } else {
    using Y = std::conditional_t<kOutput == Output::floats, float, T>;
    Y* const y = static_cast<Y*>(p.y) + static_cast<std::int64_t>(b) * p.y_stride;
    if (first < p.rows) y[first] = from_float<Y>(value);
    if (second < p.rows) y[second] = from_float<Y>(other);
  }
}

}  // namespace dive::cuda
