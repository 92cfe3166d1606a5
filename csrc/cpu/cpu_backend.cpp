#include "cpu/cpu_backend.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

namespace dive::cpu {

void CpuBackend::reserve(std::int64_t rows, std::int64_t capacity) {
  rows_ = capacity_ = 0;  // until there is room for all of it
  const double slot = 2.0 * static_cast<double>(rows) *
                      static_cast<double>(spec_.kv_heads * spec_.head_width) *
                      static_cast<double>(size_of(spec_.dtype));
  double wanted = 0;
  cache_offset_.clear();
  for (const LayerSpec& layer : spec_.layers) {
    cache_offset_.push_back(wanted < 0x1p47 ? static_cast<std::size_t>(wanted) : 0);
    wanted += slot * static_cast<double>(slots(layer, capacity));
  }
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
  scores_.grow(static_cast<std::size_t>(spec_.heads / spec_.kv_heads * score_stride(capacity)));
  rows_ = rows;
  capacity_ = capacity;
}

unsigned char* CpuBackend::cache_at(std::size_t layer, int which, std::int64_t row,
                                    std::int64_t head) {
  const std::int64_t bytes =
      slots(spec_.layers[layer], capacity_) * spec_.head_width * size_of(spec_.dtype);
  return cache_.get() + cache_offset_[layer] +
         ((which * rows_ + row) * spec_.kv_heads + head) * bytes;
}

void CpuBackend::adopt(std::size_t layer, std::int64_t row, std::int64_t first, std::int64_t count,
                       const CacheSource& keys, const CacheSource& values) {
  const std::int64_t item = size_of(spec_.dtype);
  const std::int64_t room = slots(spec_.layers[layer], capacity_);
  const auto bytes = static_cast<std::size_t>(spec_.head_width * item);
  for (int which = 0; which < 2; ++which) {
    const CacheSource& source = which == 0 ? keys : values;
    const auto* const from = static_cast<const unsigned char*>(source.data);
    for (std::int64_t head = 0; head < spec_.kv_heads; ++head) {
      unsigned char* const to = cache_at(layer, which, row, head);
      for (std::int64_t t = std::max<std::int64_t>(0, count - room); t < count; ++t) {
        std::memcpy(to + static_cast<std::size_t>((first + t) % room) * bytes,
                    from + (head * source.head_stride + t * source.token_stride) * item, bytes);
      }
    }
  }
}

void CpuBackend::steer_row(std::int64_t row, const std::vector<const Steering*>& layers) {
  for (const Steering* const one : layers) {
    if (one != nullptr) steering_dtype_ = one->dtype();
  }
  steering_[static_cast<std::size_t>(row)] = layers;
}

void CpuBackend::run(const StepInput& input, const std::function<void()>& schedule) {
  step_ = input;
  isa_ = current_isa();
  kernels_ = &decode_kernels(isa_, spec_.dtype);
  schedule();
}

void CpuBackend::embed() {
  const std::int64_t item = size_of(spec_.dtype);
  for (std::int64_t i = 0; i < step_.count; ++i) {
    const auto* const from = static_cast<const unsigned char*>(spec_.embedding.weight) +
                             step_.tokens[i] * spec_.embedding.stride * item;
    kernels_->scale(from, spec_.embedding_scale, residual_.data() + i * spec_.width * item,
                    spec_.width);
  }
}

StepArguments CpuBackend::step_arguments(const NormSpec& norm) const {
  StepArguments step;
  step.rows = step_.count;
  step.width = spec_.width;
  step.residual_stride = step.delta_stride = step.out_stride = spec_.width;
  step.norm_weight = norm.weight;
  step.norm_dtype = norm.dtype;
  step.norm_eps = spec_.norm_eps;
  step.norm_plus_one = spec_.norm_plus_one;
  return step;
}

const Steering* const* CpuBackend::steerings_after(std::int64_t layer) {
  bool steered = false;
  for (std::int64_t i = 0; layer >= 0 && i < step_.count; ++i) {
    const auto& own = steering_[static_cast<std::size_t>(step_.rows[i])];
    const Steering* const one = own.empty() ? nullptr : own[static_cast<std::size_t>(layer)];
    layer_steering_[static_cast<std::size_t>(i)] = one;
    steered = steered || one != nullptr;
  }
  return steered ? layer_steering_.data() : nullptr;
}

void CpuBackend::add_and_norm(const AddAndNorm& what) {
  void* delta = what.add ? delta_.data() : nullptr;
  if (what.delta_norm.weight != nullptr) {
    StepArguments step = step_arguments(what.delta_norm);
    step.residual = delta;
    step.out = delta = normed_.data();
    step_kernel(isa_, spec_.dtype, DType::f32)(step, workspace_);
  }
  StepArguments step = step_arguments(what.norm);
  step.residual = residual_.data();
  step.delta = delta;
  step.steerings = steerings_after(what.steer_after);
  step.out = normed_.data();  // each row is read before it is written, so `delta` may be the same
  step_kernel(isa_, spec_.dtype, steering_dtype_)(step, workspace_);
}

void CpuBackend::multiply(const LinearSpec& linear, const void* x, std::int64_t x_stride,
                          float* y) {
  Matvec m;
  m.weight = linear.weight;
  m.weight_stride = linear.stride;
  m.columns = linear.columns;
  m.bias = linear.bias;
  m.x = x;
  m.x_stride = x_stride;
  m.batch = step_.count;
  m.y = y;
  m.y_stride = linear.rows;
  m.first = 0;
  m.last = linear.rows;
  kernels_->matvec(m);
}

const void* CpuBackend::model_input(const void* from, std::int64_t width) {
  const std::int64_t item = size_of(spec_.dtype), wanted = size_of(kernels_->input);
  for (std::int64_t i = 0; i < step_.count; ++i) {
    kernels_->input_from_model(static_cast<const unsigned char*>(from) + i * width * item,
                               input_.data() + i * padded(width) * wanted, width);
  }
  return input_.data();
}

const void* CpuBackend::float_input(const float* from, std::int64_t width) {
  const std::int64_t wanted = size_of(kernels_->input);
  for (std::int64_t i = 0; i < step_.count; ++i) {
    kernels_->input_from_float(from + i * width, input_.data() + i * padded(width) * wanted, width);
  }
  return input_.data();
}

void CpuBackend::project_heads(const LayerSpec& layer) {
  const void* const in = model_input(normed_.data(), spec_.width);
  multiply(layer.query, in, padded(spec_.width), query_.data());
  multiply(layer.key, in, padded(spec_.width), key_.data());
  multiply(layer.value, in, padded(spec_.width), value_.data());
}

void CpuBackend::attend(std::size_t index) {
  const LayerSpec& layer = spec_.layers[index];
  const RopeSpec& rope = spec_.ropes[layer.rope];
  const std::int64_t width = spec_.head_width, group = spec_.heads / spec_.kv_heads;
  const std::int64_t item = size_of(spec_.dtype), room = slots(layer, capacity_);
  const HeadNorm query_norm{layer.query_norm.weight, layer.query_norm.dtype, spec_.norm_eps,
                            spec_.norm_plus_one};
  const HeadNorm key_norm{layer.key_norm.weight, layer.key_norm.dtype, spec_.norm_eps,
                          spec_.norm_plus_one};
  for (std::int64_t i = 0; i < step_.count; ++i) {
    const std::int64_t row = step_.rows[i], length = step_.lengths[row];
    const float* const cosines = rope.cosines + step_.positions[row] * rope.half;
    const float* const sines = rope.sines + step_.positions[row] * rope.half;
    const auto prepare = [&](float* head, const HeadNorm& norm) {
      if (norm.weight != nullptr) norm_head(norm, head, width);
      rotate_head(cosines, sines, rope.half, head);
    };
    float* const queries = query_.data() + i * spec_.heads * width;
    float* const keys = key_.data() + i * spec_.kv_heads * width;
    float* const values = value_.data() + i * spec_.kv_heads * width;
    for (std::int64_t h = 0; h < spec_.heads; ++h) prepare(queries + h * width, query_norm);
    for (std::int64_t h = 0; h < spec_.kv_heads; ++h) {
      prepare(keys + h * width, key_norm);
      unsigned char* const key_cache = cache_at(index, 0, row, h);
      unsigned char* const value_cache = cache_at(index, 1, row, h);
      const std::int64_t slot = length % room * width * item;
      kernels_->round(keys + h * width, key_cache + slot, width);
      kernels_->round(values + h * width, value_cache + slot, width);
      Attention a;
      a.query = queries + h * group * width;
      a.group = group;
      a.width = width;
      a.keys = key_cache;
      a.values = value_cache;
      a.count = std::min(length + 1, room);
      a.scale = spec_.attention_scale;
      a.softcap = spec_.attention_softcap;
      a.scores = scores_.data();
      a.out = mixed_.data() + (i * spec_.heads + h * group) * width;
      kernels_->attend(a);
    }
  }
}

void CpuBackend::project_back(const LinearSpec& linear, const float* from) {
  multiply(linear, float_input(from, linear.columns), padded(linear.columns), wide_.data());
  kernels_->round(wide_.data(), delta_.data(), step_.count * spec_.width);
}

void CpuBackend::project_attention(const LayerSpec& layer) {
  project_back(layer.output, mixed_.data());
}

void CpuBackend::gated(const LayerSpec& layer) {
  const void* const in = model_input(normed_.data(), spec_.width);
  multiply(layer.gate, in, padded(spec_.width), gate_.data());
  multiply(layer.up, in, padded(spec_.width), up_.data());
  kernels_->gate(spec_.gate, gate_.data(), up_.data(), step_.count * spec_.mlp_width);
}

void CpuBackend::project_mlp(const LayerSpec& layer) { project_back(layer.down, gate_.data()); }

void CpuBackend::predict() {
  const std::int64_t vocabulary = spec_.head.rows;
  logits_.grow(static_cast<std::size_t>(step_.count * vocabulary));
  multiply(spec_.head, model_input(normed_.data(), spec_.width), padded(spec_.width),
           logits_.data());
  for (std::int64_t i = 0; i < step_.count; ++i) {
    float* const own = logits_.data() + i * vocabulary;
    step_.next[i] = kernels_->finish_logits(own, spec_.logits_softcap, vocabulary);
    if (step_.logits != nullptr) {
      std::memcpy(step_.logits + step_.rows[i] * vocabulary, own,
                  static_cast<std::size_t>(vocabulary) * sizeof(float));
    }
  }
}

}  // namespace dive::cpu
