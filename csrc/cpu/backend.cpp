#include "cpu/backend.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <stdexcept>
#include <string>

namespace dive::cpu {
void CpuBackend::set_threads(int count) {
  std::vector<Scratch> scratch(static_cast<std::size_t>(count));
  for (Scratch& one : scratch) grow(one);
  threads_ = std::make_unique<Threads>(count);
  scratch_ = std::move(scratch);
}

void CpuBackend::grow(Scratch& scratch) const {
  scratch.workspace.prepare(spec_.width);
  scratch.scores.grow(
      static_cast<std::size_t>(spec_.heads / spec_.kv_heads * score_stride(capacity_)));
}

void CpuBackend::reserve(std::int64_t slots, std::int64_t capacity) {
  slots_ = capacity_ = 0;  // until all of it is allocated
  layout_ = CacheLayout(spec_, slots, capacity);
  if (layout_.bytes() > cache_bytes_) {
    // not zeroed: the system hands out pages as they are first written, so that memory for
    // tokens that never come costs nothing
    cache_.reset();
    cache_bytes_ = 0;
    const std::size_t whole = (layout_.bytes() + 63) / 64 * 64;
    cache_.reset(static_cast<unsigned char*>(std::aligned_alloc(64, whole)));
    if (!cache_) {
      throw std::runtime_error("out of memory: " + layout_.what() + " needs " +
                               std::to_string(layout_.bytes() >> 20) + " MiB");
    }
    cache_bytes_ = whole;
  }
  steering_.assign(static_cast<std::size_t>(slots), {});
  layer_steering_.resize(static_cast<std::size_t>(slots));

  const auto grow_bytes = [&](auto& buffer, std::int64_t width, std::int64_t item) {
    buffer.grow(static_cast<std::size_t>(slots * padded(width) * item));
  };
  const auto grow = [&](auto& buffer, std::int64_t width) {
    buffer.grow(static_cast<std::size_t>(slots * width));
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
  capacity_ = capacity;
  for (Scratch& one : scratch_) this->grow(one);
  slots_ = slots;
}

void CpuBackend::copy_cache(std::size_t layer, std::int64_t slot, std::int64_t first,
                            std::int64_t count, const CacheSource& keys,
                            const CacheSource& values) {
  const std::int64_t item = size_of(spec_.dtype);
  const std::int64_t cells = layout_.cells(layer);
  const auto bytes = static_cast<std::size_t>(spec_.head_width * item);
  for (int which = 0; which < 2; ++which) {
    const CacheSource& source = which == 0 ? keys : values;
    const auto* const from = static_cast<const unsigned char*>(source.data);
    for (std::int64_t head = 0; head < spec_.kv_heads; ++head) {
      unsigned char* const to = cache_.get() + layout_.at(layer, which, slot, head);
      for (std::int64_t t = std::max<std::int64_t>(0, count - cells); t < count; ++t) {
        std::memcpy(to + static_cast<std::size_t>((first + t) % cells) * bytes,
                    from + (head * source.head_stride + t * source.token_stride) * item, bytes);
      }
    }
  }
}

void CpuBackend::steer_slot(std::int64_t slot, const std::vector<const Steering*>& layers) {
  auto& own = steering_[static_cast<std::size_t>(slot)];
  own.clear();
  for (const Steering* const one : layers) own.push_back(static_cast<const PackedSteering*>(one));
}

void CpuBackend::run(const StepInput& input, const std::function<void()>& schedule) {
  step_ = input;
  kernels_ = &kernels_of(current_isa(), spec_.dtype);
  const Threads::Step under_way(*threads_);
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
  step.rows = 1;
  step.width = spec_.width;
  step.residual_stride = step.delta_stride = step.out_stride = spec_.width;
  step.norm_weight = norm.weight;
  step.norm_dtype = norm.dtype;
  step.norm_eps = spec_.norm_eps;
  step.norm_plus_one = spec_.norm_plus_one;
  return step;
}

void CpuBackend::find_steerings(std::int64_t layer) {
  for (std::int64_t i = 0; i < step_.count; ++i) {
    const auto& own = steering_[static_cast<std::size_t>(step_.slots[i])];
    layer_steering_[static_cast<std::size_t>(i)] =
        layer < 0 || own.empty() ? nullptr : own[static_cast<std::size_t>(layer)];
  }
}

template <class Work>
void CpuBackend::each_row(std::int64_t numbers, const Work& work) {
  if (step_.count * numbers * 4 >= chunk_bytes_) {
    threads_->share(step_.count, work);
  } else {
    for (std::int64_t i = 0; i < step_.count; ++i) work(i, 0);
  }
}

void CpuBackend::add_and_norm(const AddAndNorm& what) {
  find_steerings(what.steer_after);
  each_row(spec_.width, [&](std::int64_t i, int thread) { add_and_norm_row(what, i, thread); });
}

void CpuBackend::add_and_norm_row(const AddAndNorm& what, std::int64_t i, int thread) {
  const std::int64_t at = i * spec_.width * size_of(spec_.dtype);
  Workspace& workspace = scratch_[static_cast<std::size_t>(thread)].workspace;
  void* delta = what.add ? delta_.data() + at : nullptr;
  if (what.delta_norm.weight != nullptr) {
    StepArguments step = step_arguments(what.delta_norm);
    step.residual = delta;
    step.out = delta = normed_.data() + at;
    kernels_->step(step, workspace);
  }
  StepArguments step = step_arguments(what.norm);
  step.residual = residual_.data() + at;
  step.delta = delta;
  step.steerings = layer_steering_.data() + i;
  step.out = normed_.data() + at;  // read before it is written, so `delta` may be the same
  kernels_->step(step, workspace);
}

CpuBackend::Parts CpuBackend::parts_of(const LinearSpec& linear) const {
  Parts parts{linear.rows, linear.rows, 1};
  if (threads() == 1) return parts;
  // whole vectors too, so that what follows a product row by row treats no number differently
  const std::int64_t unit = std::lcm(std::int64_t{16}, kernels_->row_tile);
  const std::int64_t bytes = unit * linear.columns * size_of(spec_.dtype);
  parts.size = unit * ((chunk_bytes_ + bytes - 1) / bytes);
  parts.count = (linear.rows + parts.size - 1) / parts.size;
  return parts;
}

void CpuBackend::multiply(const LinearSpec& linear, const void* x, float* y, std::int64_t first,
                          std::int64_t last) const {
  Matvec m;
  m.weight = linear.weight;
  m.weight_stride = linear.stride;
  m.columns = linear.columns;
  m.bias = linear.bias;
  m.x = x;
  m.x_stride = padded(linear.columns);
  m.batch = step_.count;
  m.y = y;
  m.y_stride = linear.rows;
  m.first = first;
  m.last = last;
  kernels_->matvec(m);
}

const void* CpuBackend::model_input(const void* from, std::int64_t width) {
  const std::int64_t item = size_of(spec_.dtype), wanted = size_of(kernels_->input);
  each_row(width, [&](std::int64_t i, int) {
    kernels_->input_from_model(static_cast<const unsigned char*>(from) + i * width * item,
                               input_.data() + i * padded(width) * wanted, width);
  });
  return input_.data();
}

const void* CpuBackend::float_input(const float* from, std::int64_t width) {
  const std::int64_t wanted = size_of(kernels_->input);
  each_row(width, [&](std::int64_t i, int) {
    kernels_->input_from_float(from + i * width, input_.data() + i * padded(width) * wanted, width);
  });
  return input_.data();
}

void CpuBackend::project_heads(const LayerSpec& layer) {
  const void* const in = model_input(normed_.data(), spec_.width);
  struct Product {
    const LinearSpec& linear;
    float* y;
    Parts parts;
  };
  const Product products[] = {{layer.query, query_.data(), parts_of(layer.query)},
                              {layer.key, key_.data(), parts_of(layer.key)},
                              {layer.value, value_.data(), parts_of(layer.value)}};
  std::int64_t count = 0;
  for (const Product& one : products) count += one.parts.count;
  threads_->share(count, [&](std::int64_t part, int) {
    const Product* one = products;
    for (; part >= one->parts.count; ++one) part -= one->parts.count;
    multiply(one->linear, in, one->y, one->parts.first(part), one->parts.last(part));
  });
}

void CpuBackend::attend(std::size_t index) {
  const LayerSpec& layer = spec_.layers[index];
  std::int64_t tokens_read = 0;
  for (std::int64_t i = 0; i < step_.count; ++i) {
    tokens_read += std::min(step_.lengths[step_.slots[i]] + 1, layout_.cells(index));
  }
  // as many heads of keys and values as make a chunk
  const std::int64_t pairs = step_.count * spec_.kv_heads;
  const std::int64_t bytes =
      2 * tokens_read * spec_.kv_heads * spec_.head_width * size_of(spec_.dtype);
  const std::int64_t size = std::min(pairs, (chunk_bytes_ * pairs + bytes - 1) / bytes);
  threads_->share((pairs + size - 1) / size, [&](std::int64_t part, int thread) {
    const std::int64_t end = std::min(pairs, (part + 1) * size);
    for (std::int64_t pair = part * size; pair < end; ++pair) {
      attend_head(layer, index, pair / spec_.kv_heads, pair % spec_.kv_heads, thread);
    }
  });
}

// One head of keys and values of row i of the step, and the queries that go with it.
void CpuBackend::attend_head(const LayerSpec& layer, std::size_t index, std::int64_t i,
                             std::int64_t head, int thread) {
  const RopeSpec& rope = spec_.ropes[layer.rope];
  const std::int64_t width = spec_.head_width, group = spec_.heads / spec_.kv_heads;
  const std::int64_t cells = layout_.cells(index);
  const std::int64_t slot = step_.slots[i], length = step_.lengths[slot];
  const auto prepare = [&](float* one, const NormSpec& norm) {
    if (norm.weight != nullptr) {
      norm_head({norm.weight, norm.dtype, spec_.norm_eps, spec_.norm_plus_one}, one, width);
    }
    const std::int64_t at = step_.positions[slot] * rope.half;
    rotate_head(rope.cosines + at, rope.sines + at, rope.half, one);
  };
  float* const queries = query_.data() + (i * spec_.heads + head * group) * width;
  float* const key = key_.data() + (i * spec_.kv_heads + head) * width;
  float* const value = value_.data() + (i * spec_.kv_heads + head) * width;
  for (std::int64_t g = 0; g < group; ++g) prepare(queries + g * width, layer.query_norm);
  prepare(key, layer.key_norm);
  unsigned char* const keys = cache_.get() + layout_.at(index, 0, slot, head);
  unsigned char* const values = cache_.get() + layout_.at(index, 1, slot, head);
  const std::int64_t at = length % cells * width * size_of(spec_.dtype);
  kernels_->round(key, keys + at, width);
  kernels_->round(value, values + at, width);
  Attention a;
  a.query = queries;
  a.group = group;
  a.width = width;
  a.keys = keys;
  a.values = values;
  a.count = std::min(length + 1, cells);
  a.scale = spec_.attention_scale;
  a.softcap = spec_.attention_softcap;
  a.scores = scratch_[static_cast<std::size_t>(thread)].scores.data();
  a.out = mixed_.data() + (i * spec_.heads + head * group) * width;
  kernels_->attend(a);
}

void CpuBackend::project_back(const LinearSpec& linear, const float* from) {
  const void* const in = float_input(from, linear.columns);
  const Parts parts = parts_of(linear);
  threads_->share(parts.count, [&](std::int64_t part, int) {
    const std::int64_t first = parts.first(part), last = parts.last(part);
    multiply(linear, in, wide_.data(), first, last);
    for (std::int64_t i = 0; i < step_.count; ++i) {
      const std::int64_t at = i * linear.rows + first;
      kernels_->round(wide_.data() + at, delta_.data() + at * size_of(spec_.dtype), last - first);
    }
  });
}

void CpuBackend::project_attention(const LayerSpec& layer) {
  project_back(layer.output, mixed_.data());
}

void CpuBackend::gated(const LayerSpec& layer) {
  const void* const in = model_input(normed_.data(), spec_.width);
  const Parts parts = parts_of(layer.gate);
  threads_->share(parts.count, [&](std::int64_t part, int) {
    const std::int64_t first = parts.first(part), last = parts.last(part);
    multiply(layer.gate, in, gate_.data(), first, last);
    multiply(layer.up, in, up_.data(), first, last);
    for (std::int64_t i = 0; i < step_.count; ++i) {
      const std::int64_t at = i * spec_.mlp_width + first;
      kernels_->gate(spec_.gate, gate_.data() + at, up_.data() + at, last - first);
    }
  });
}

void CpuBackend::project_mlp(const LayerSpec& layer) { project_back(layer.down, gate_.data()); }

void CpuBackend::predict() {
  const std::int64_t vocabulary = spec_.head.rows;
  const Parts parts = parts_of(spec_.head);
  logits_.grow(static_cast<std::size_t>(step_.count * vocabulary));
  best_.resize(static_cast<std::size_t>(step_.count * parts.count));
  const void* const in = model_input(normed_.data(), spec_.width);
  threads_->share(parts.count, [&](std::int64_t part, int) {
    const std::int64_t first = parts.first(part), last = parts.last(part);
    multiply(spec_.head, in, logits_.data(), first, last);
    for (std::int64_t i = 0; i < step_.count; ++i) {
      float* const own = logits_.data() + i * vocabulary + first;
      best_[static_cast<std::size_t>(i * parts.count + part)] =
          first + kernels_->finish_logits(own, spec_.logits_softcap, last - first);
      if (step_.logits != nullptr) {
        std::memcpy(step_.logits + step_.slots[i] * vocabulary + first, own,
                    static_cast<std::size_t>(last - first) * sizeof(float));
      }
    }
  });
  for (std::int64_t i = 0; i < step_.count; ++i) {
    // as in a part: the first of equals, and a NaN is larger than any number
    const float* const own = logits_.data() + i * vocabulary;
    const std::int64_t* const best = best_.data() + i * parts.count;
    step_.next[i] = best[0];
    for (std::int64_t part = 1; part < parts.count; ++part) {
      const float most = own[step_.next[i]], more = own[best[part]];
      if (most == most && !(more <= most)) step_.next[i] = best[part];
    }
    // where all are the same the first is the largest, and seldom does the next one equal it
    const bool distinct =
        step_.next[i] != 0 || vocabulary == 1 ||
        std::any_of(own + 1, own + vocabulary, [own](float other) { return other != own[0]; });
    if (!distinct || !std::isfinite(own[step_.next[i]])) step_.next[i] = kNoToken;
  }
}

}  // namespace dive::cpu
