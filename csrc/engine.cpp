#include "engine.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

namespace dive {

using cpu::padded;
using cpu::Steering;

Engine::Engine(ModelSpec spec) : spec_(std::move(spec)) {}

std::int64_t Engine::cache_bytes() const { return static_cast<std::int64_t>(cache_bytes_); }

void Engine::reserve(std::int64_t rows, std::int64_t capacity) {
  rows_ = capacity_ = 0;  // until there is room for all of it
  const double wanted = 2.0 * static_cast<double>(spec_.layers.size()) *
                        static_cast<double>(rows * capacity) *
                        static_cast<double>(spec_.kv_heads * spec_.head_width) *
                        static_cast<double>(size_of(spec_.dtype));
  const std::size_t bytes = wanted < 0x1p47 ? static_cast<std::size_t>(wanted) : 0;
  if (bytes > cache_bytes_ || bytes == 0) {
    // not zeroed: the system hands out pages as they are first written, so that room for tokens
    // that never come costs nothing
    cache_.reset();
    cache_bytes_ = 0;
    const std::size_t whole = (bytes + 63) / 64 * 64;
    if (whole > 0) cache_.reset(static_cast<unsigned char*>(std::aligned_alloc(64, whole)));
    if (!cache_) {
      throw std::runtime_error("out of memory: the cache of " + std::to_string(rows) +
                               " sequences of " + std::to_string(capacity) + " tokens wants " +
                               std::to_string(static_cast<std::int64_t>(wanted / 0x1p20)) + " MiB");
    }
    cache_bytes_ = whole;
  }
  length_.assign(static_cast<std::size_t>(rows), 0);
  position_.assign(static_cast<std::size_t>(rows), 0);
  steering_.assign(static_cast<std::size_t>(rows), {});
  layer_steering_.resize(static_cast<std::size_t>(rows));
  steering_dtype_ = DType::f32;

  const auto grow_bytes = [&](auto& buffer, std::int64_t width, std::int64_t item) {
    buffer.grow(static_cast<std::size_t>(rows * padded(width) * item));
  };
  const auto grow = [&](auto& buffer, std::int64_t width) {
    buffer.grow(static_cast<std::size_t>(rows * width));
  };
  const std::int64_t item = size_of(spec_.dtype);
  const std::int64_t queries = spec_.heads * spec_.head_width;
  const std::int64_t keys = spec_.kv_heads * spec_.head_width;
  for (auto* buffer : {&residual_, &normed_, &delta_}) {
    grow_bytes(*buffer, spec_.width, item);
  }
  grow_bytes(input_, std::max({spec_.width, queries, spec_.mlp_width}), 4);
  grow(wide_, spec_.width);
  grow(query_, queries);
  grow(key_, keys);
  grow(value_, keys);
  grow(mixed_, queries);
  grow(gate_, spec_.mlp_width);
  grow(up_, spec_.mlp_width);
  scores_.grow(
      static_cast<std::size_t>(spec_.heads / spec_.kv_heads * cpu::score_stride(capacity)));
  rows_ = rows;
  capacity_ = capacity;
}

unsigned char* Engine::cache_at(std::size_t layer, int which, std::int64_t row, std::int64_t head) {
  const std::int64_t part = (static_cast<std::int64_t>(layer) * 2 + which) * rows_ + row;
  return cache_.get() +
         (part * spec_.kv_heads + head) * capacity_ * spec_.head_width * size_of(spec_.dtype);
}

void Engine::adopt(std::int64_t layer, std::int64_t row, std::int64_t first, std::int64_t count,
                   const Source& keys, const Source& values) {
  const std::int64_t item = size_of(spec_.dtype);
  const auto bytes = static_cast<std::size_t>(spec_.head_width * item);
  for (int which = 0; which < 2; ++which) {
    const Source& source = which == 0 ? keys : values;
    const auto* const from = static_cast<const unsigned char*>(source.data);
    for (std::int64_t head = 0; head < spec_.kv_heads; ++head) {
      unsigned char* const to = cache_at(static_cast<std::size_t>(layer), which, row, head);
      for (std::int64_t t = 0; t < count; ++t) {
        std::memcpy(to + static_cast<std::size_t>(first + t) * bytes,
                    from + (head * source.head_stride + t * source.token_stride) * item, bytes);
      }
    }
  }
}

void Engine::start_row(std::int64_t row, std::int64_t length, std::int64_t position) {
  length_[static_cast<std::size_t>(row)] = length;
  position_[static_cast<std::size_t>(row)] = position;
}

void Engine::steer_row(std::int64_t row, std::vector<const Steering*> layers) {
  for (const Steering* const one : layers) {
    if (one != nullptr) steering_dtype_ = one->dtype();
  }
  steering_[static_cast<std::size_t>(row)] = std::move(layers);
}

void Engine::multiply(const LinearSpec& linear, const void* x, std::int64_t x_stride, float* y,
                      std::int64_t count) {
  cpu::Matvec m;
  m.weight = linear.weight;
  m.weight_stride = linear.stride;
  m.columns = linear.columns;
  m.bias = linear.bias;
  m.x = x;
  m.x_stride = x_stride;
  m.batch = count;
  m.y = y;
  m.y_stride = linear.rows;
  m.first = 0;
  m.last = linear.rows;
  kernels_->matvec(m);
}

const void* Engine::model_input(const void* from, std::int64_t width, std::int64_t count) {
  const std::int64_t item = size_of(spec_.dtype), wanted = size_of(kernels_->input);
  for (std::int64_t i = 0; i < count; ++i) {
    kernels_->input_from_model(static_cast<const unsigned char*>(from) + i * width * item,
                               input_.data() + i * padded(width) * wanted, width);
  }
  return input_.data();
}

const void* Engine::float_input(const float* from, std::int64_t width, std::int64_t count) {
  const std::int64_t wanted = size_of(kernels_->input);
  for (std::int64_t i = 0; i < count; ++i) {
    kernels_->input_from_float(from + i * width, input_.data() + i * padded(width) * wanted, width);
  }
  return input_.data();
}

void Engine::project_back(const LinearSpec& linear, const float* from, const NormSpec& after,
                          std::int64_t count) {
  multiply(linear, float_input(from, linear.columns, count), padded(linear.columns), wide_.data(),
           count);
  kernels_->round(wide_.data(), delta_.data(), count * spec_.width);
  if (after.weight == nullptr) return;
  cpu::StepArguments step = step_arguments(after, count);
  step.residual = delta_.data();
  step.out = normed_.data();
  cpu::step_kernel(isa_, spec_.dtype, DType::f32)(step, workspace_);
  std::memcpy(delta_.data(), normed_.data(),
              static_cast<std::size_t>(count * spec_.width * size_of(spec_.dtype)));
}

cpu::StepArguments Engine::step_arguments(const NormSpec& norm, std::int64_t count) const {
  cpu::StepArguments step;
  step.rows = count;
  step.width = spec_.width;
  step.residual_stride = step.delta_stride = step.out_stride = spec_.width;
  step.norm_weight = norm.weight;
  step.norm_dtype = norm.dtype;
  step.norm_eps = spec_.norm_eps;
  step.norm_plus_one = spec_.norm_plus_one;
  return step;
}

void Engine::add_and_norm(bool add, const Steering* const* steerings, const NormSpec& norm,
                          std::int64_t count) {
  cpu::StepArguments step = step_arguments(norm, count);
  step.residual = residual_.data();
  step.delta = add ? delta_.data() : nullptr;
  step.steerings = steerings;
  step.out = normed_.data();
  cpu::step_kernel(isa_, spec_.dtype, steering_dtype_)(step, workspace_);
}

void Engine::attend(std::size_t index, const std::int64_t* rows, std::int64_t count) {
  const LayerSpec& layer = spec_.layers[index];
  const RopeSpec& rope = spec_.ropes[layer.rope];
  const std::int64_t width = spec_.head_width, group = spec_.heads / spec_.kv_heads;
  const std::int64_t item = size_of(spec_.dtype);
  const cpu::HeadNorm query_norm{layer.query_norm.weight, layer.query_norm.dtype, spec_.norm_eps,
                                 spec_.norm_plus_one};
  const cpu::HeadNorm key_norm{layer.key_norm.weight, layer.key_norm.dtype, spec_.norm_eps,
                               spec_.norm_plus_one};
  for (std::int64_t i = 0; i < count; ++i) {
    const auto row = static_cast<std::size_t>(rows[i]);
    const std::int64_t length = length_[row];
    const float* const cosines = rope.cosines + position_[row] * rope.half;
    const float* const sines = rope.sines + position_[row] * rope.half;
    const auto prepare = [&](float* head, const cpu::HeadNorm& norm) {
      if (norm.weight != nullptr) cpu::norm_head(norm, head, width);
      cpu::rotate_head(cosines, sines, rope.half, head);
    };
    float* const queries = query_.data() + i * spec_.heads * width;
    float* const keys = key_.data() + i * spec_.kv_heads * width;
    float* const values = value_.data() + i * spec_.kv_heads * width;
    for (std::int64_t h = 0; h < spec_.heads; ++h) prepare(queries + h * width, query_norm);
    for (std::int64_t h = 0; h < spec_.kv_heads; ++h) {
      prepare(keys + h * width, key_norm);
      unsigned char* const key_cache = cache_at(index, 0, rows[i], h);
      unsigned char* const value_cache = cache_at(index, 1, rows[i], h);
      kernels_->round(keys + h * width, key_cache + length * width * item, width);
      kernels_->round(values + h * width, value_cache + length * width * item, width);
      cpu::Attention a;
      a.query = queries + h * group * width;
      a.group = group;
      a.width = width;
      a.keys = key_cache;
      a.values = value_cache;
      a.last = length + 1;
      a.first = layer.window > 0 ? std::max<std::int64_t>(0, a.last - layer.window) : 0;
      a.scale = spec_.attention_scale;
      a.softcap = spec_.attention_softcap;
      a.scores = scores_.data();
      a.out = mixed_.data() + (i * spec_.heads + h * group) * width;
      kernels_->attend(a);
    }
  }
}

void Engine::run_layer(std::size_t index, const std::int64_t* rows, std::int64_t count) {
  const LayerSpec& layer = spec_.layers[index];
  const std::int64_t stride = padded(spec_.width);
  const void* const attention_in = model_input(normed_.data(), spec_.width, count);
  multiply(layer.query, attention_in, stride, query_.data(), count);
  multiply(layer.key, attention_in, stride, key_.data(), count);
  multiply(layer.value, attention_in, stride, value_.data(), count);
  attend(index, rows, count);
  project_back(layer.output, mixed_.data(), layer.after_attention, count);
  add_and_norm(true, nullptr, layer.before_mlp, count);

  const void* const mlp_in = model_input(normed_.data(), spec_.width, count);
  multiply(layer.gate, mlp_in, stride, gate_.data(), count);
  multiply(layer.up, mlp_in, stride, up_.data(), count);
  kernels_->gate(spec_.gate, gate_.data(), up_.data(), count * spec_.mlp_width);
  project_back(layer.down, gate_.data(), layer.after_mlp, count);
}

void Engine::step(const std::int64_t* tokens, const std::int64_t* rows, std::int64_t count,
                  std::int64_t* next, float* logits) {
  isa_ = cpu::current_isa();
  kernels_ = &cpu::decode_kernels(isa_, spec_.dtype);
  const std::int64_t item = size_of(spec_.dtype), width = spec_.width;
  for (std::int64_t i = 0; i < count; ++i) {
    const auto* const from = static_cast<const unsigned char*>(spec_.embedding.weight) +
                             tokens[i] * spec_.embedding.stride * item;
    kernels_->scale(from, spec_.embedding_scale, residual_.data() + i * width * item, width);
  }
  add_and_norm(false, nullptr, spec_.layers[0].before_attention, count);
  for (std::size_t l = 0; l < spec_.layers.size(); ++l) {
    run_layer(l, rows, count);
    bool steered = false;
    for (std::int64_t i = 0; i < count; ++i) {
      const auto& own = steering_[static_cast<std::size_t>(rows[i])];
      layer_steering_[static_cast<std::size_t>(i)] = own.empty() ? nullptr : own[l];
      steered = steered || layer_steering_[static_cast<std::size_t>(i)] != nullptr;
    }
    const bool last = l + 1 == spec_.layers.size();
    add_and_norm(true, steered ? layer_steering_.data() : nullptr,
                 last ? spec_.final_norm : spec_.layers[l + 1].before_attention, count);
  }
  const std::int64_t vocabulary = spec_.head.rows;
  logits_.grow(static_cast<std::size_t>(count * vocabulary));
  multiply(spec_.head, model_input(normed_.data(), width, count), padded(width), logits_.data(),
           count);
  for (std::int64_t i = 0; i < count; ++i) {
    float* const own = logits_.data() + i * vocabulary;
    next[i] = kernels_->finish_logits(own, spec_.logits_softcap, vocabulary);
    if (logits != nullptr) {
      std::memcpy(logits + rows[i] * vocabulary, own,
                  static_cast<std::size_t>(vocabulary) * sizeof(float));
    }
    ++length_[static_cast<std::size_t>(rows[i])];
    ++position_[static_cast<std::size_t>(rows[i])];
  }
}

}  // namespace dive
