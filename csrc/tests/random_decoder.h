// A decoder of random weights for tests, without Python.
#pragma once

#include <cmath>
#include <cstdint>
#include <deque>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "cpu/backend.h"
#include "decoder.h"
#include "engine.h"

namespace dive {

struct Sizes {
  std::int64_t width = 40, layers = 2, heads = 6, kv_heads = 2, head_width = 12, mlp_width = 100;
  std::int64_t vocabulary = 131, window = 0, positions = 64;
  bool four_norms = true;
};

template <class T>
class RandomDecoder {
 public:
  explicit RandomDecoder(const Sizes& sizes) {
    spec.dtype = dtype_of<T>::value;
    spec.width = sizes.width;
    spec.heads = sizes.heads;
    spec.kv_heads = sizes.kv_heads;
    spec.head_width = sizes.head_width;
    spec.mlp_width = sizes.mlp_width;
    spec.norm_eps = 1e-5f;
    spec.attention_scale = 1.0f / std::sqrt(static_cast<float>(sizes.head_width));
    spec.embedding = linear(sizes.vocabulary, sizes.width, false);
    spec.head = linear(sizes.vocabulary, sizes.width, false);
    spec.final_norm = norm(sizes.width);
    RopeSpec rope;
    rope.positions = sizes.positions;
    rope.half = sizes.head_width / 2;
    rope.cosines = normal<float>(rope.positions * rope.half, 1.0f);
    rope.sines = normal<float>(rope.positions * rope.half, 1.0f);
    spec.ropes.push_back(rope);
    const std::int64_t queries = sizes.heads * sizes.head_width;
    const std::int64_t keys = sizes.kv_heads * sizes.head_width;
    for (std::int64_t l = 0; l < sizes.layers; ++l) {
      LayerSpec layer;
      layer.before_attention = norm(sizes.width);
      layer.before_mlp = norm(sizes.width);
      if (sizes.four_norms) {
        layer.after_attention = norm(sizes.width);
        layer.after_mlp = norm(sizes.width);
        layer.query_norm = norm(sizes.head_width);
        layer.key_norm = norm(sizes.head_width);
      }
      layer.query = linear(queries, sizes.width, true);
      layer.key = linear(keys, sizes.width, true);
      layer.value = linear(keys, sizes.width, true);
      layer.output = linear(sizes.width, queries, false);
      layer.gate = linear(sizes.mlp_width, sizes.width, false);
      layer.up = linear(sizes.mlp_width, sizes.width, false);
      layer.down = linear(sizes.width, sizes.mlp_width, false);
      layer.window = l % 2 == 0 ? sizes.window : 0;
      spec.layers.push_back(layer);
    }
  }

  Engine engine(int threads, std::int64_t chunk_bytes = cpu::CpuBackend::kChunkBytes) const {
    auto backend = std::make_unique<cpu::CpuBackend>(spec, chunk_bytes);
    backend->set_threads(threads);
    return Engine(spec, std::move(backend));
  }

  DecoderSpec spec;

 private:
  template <class N>
  const N* normal(std::int64_t count, float deviation) {
    // a few numbers over and over: large decoders are made in no time
    std::normal_distribution<float> draw(0.0f, deviation);
    std::vector<N> some(static_cast<std::size_t>(std::min<std::int64_t>(count, 4099)));
    for (N& value : some) value = from_float<N>(draw(generator_));
    auto values = std::make_shared<std::vector<N>>(static_cast<std::size_t>(count));
    for (std::size_t i = 0; i < values->size(); ++i) (*values)[i] = some[i % some.size()];
    owned_.push_back(values);
    return values->data();
  }

  LinearSpec linear(std::int64_t rows, std::int64_t columns, bool bias) {
    LinearSpec one;
    one.weight = normal<T>(rows * columns, 1.0f / std::sqrt(static_cast<float>(columns)));
    one.stride = one.columns = columns;
    one.rows = rows;
    if (bias) one.bias = normal<T>(rows, 0.3f);
    return one;
  }

  NormSpec norm(std::int64_t width) { return {normal<T>(width, 1.0f), dtype_of<T>::value}; }

  std::mt19937 generator_{11};
  std::deque<std::shared_ptr<void>> owned_;
};

}  // namespace dive
