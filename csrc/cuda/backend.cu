#include "cuda/backend.h"

#include <algorithm>
#include <cstdint>
#include <map>
#include <set>
#include <stdexcept>
#include <utility>
#include <vector>

#include "cache_layout.h"
#include "cuda/add_and_norm.h"
#include "cuda/attention.h"
#include "cuda/copy_cache.h"
#include "cuda/embed.h"
#include "cuda/linear.h"
#include "cuda/predict.h"
#include "cuda/runtime.h"
#include "cuda/steering.h"

namespace dive::cuda {
namespace {

// Of one block of steering, so that the blocks of a product fit on the same multiprocessor.
constexpr std::size_t kSharedLimit = 96 * 1024;

NormView view_of(const NormSpec& norm) { return {norm.weight, norm.dtype == DType::f32}; }

class CudaBackend final : public Backend {
 public:
  CudaBackend(DecoderSpec spec, int device) : spec_(std::move(spec)), device_(device) {
    const OnDevice here(device_);
    processors_ = attribute(cudaDevAttrMultiProcessorCount);
    clusters_ = has_clusters(device_);
    // graphs keep the overlap of kernels from CUDA 12.3 on
    int driver = 0;
    check(cudaDriverGetVersion(&driver), "the driver's version");
    queue_.overlap = clusters_ && driver >= 12030;
    shared_limit_ = std::min(
        kSharedLimit, static_cast<std::size_t>(attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin)));
    allow_shared_memory(shared_limit_);
    check(cudaStreamCreateWithFlags(&recording_, cudaStreamNonBlocking), "a stream");
  }
  ~CudaBackend() override {
    if (recording_ != nullptr) cudaStreamDestroy(recording_);
  }

  void use_stream(void* stream) override {
    const OnDevice here(device_);
    const auto next = static_cast<cudaStream_t>(stream);
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    check(cudaStreamIsCapturing(next, &status), "cudaStreamIsCapturing");
    if (status != cudaStreamCaptureStatusNone) {
      throw std::runtime_error("a decode step cannot be captured: it reads the host's slots");
    }
    if (next != queue_.stream) order(queue_.stream, next);
    queue_.stream = next;
  }
  std::int64_t cache_bytes() const override { return static_cast<std::int64_t>(cache_.size()); }
  void reserve(std::int64_t slots, std::int64_t capacity) override;
  void set_ropes(const std::vector<RopeSpec>& ropes) override {
    spec_.ropes = ropes;
    forget_graphs();
  }
  void copy_cache(std::size_t layer, std::int64_t slot, std::int64_t first, std::int64_t count,
                  const CacheSource& keys, const CacheSource& values) override;
  void start_slot(std::int64_t slot, std::int64_t length, std::int64_t position) override;
  void steer_slot(std::int64_t slot, const std::vector<const Steering*>& layers) override;

  void run(const StepInput& input, const std::function<void()>& schedule) override;
  void embed() override;
  void add_and_norm(const AddAndNorm& what) override;
  void project_heads(const LayerSpec& layer) override;
  void attend(std::size_t index) override;
  void project_attention(const LayerSpec& layer) override;
  void gated(const LayerSpec& layer) override;
  void project_mlp(const LayerSpec& layer) override;
  void predict() override;

 private:
  using Bytes = Buffer<unsigned char>;

  int attribute(cudaDeviceAttr which) const {
    int value = 0;
    check(cudaDeviceGetAttribute(&value, which, device_), "a device's attribute");
    return value;
  }
  template <class T>
  void copy(T* to, const T* from, std::int64_t count, cudaMemcpyKind kind) {
    check(
        cudaMemcpyAsync(to, from, static_cast<std::size_t>(count) * sizeof(T), kind, queue_.stream),
        "a copy");
  }
  // From the host, whose memory is free again when this returns.
  template <class T>
  void upload(T* to, const T* from, std::int64_t count) {
    copy(to, from, count, cudaMemcpyHostToDevice);
    check(cudaStreamSynchronize(queue_.stream), "a copy");
  }
  void allocate(std::int64_t slots, std::int64_t capacity);
  void multiply(Output output, Product product, const Bytes& x, void* y);
  Graph recorded(const std::function<void()>& schedule);
  void forget_graphs() {
    graphs_.clear();
    ran_.clear();
  }

  DecoderSpec spec_;
  int device_;
  int processors_ = 1;
  bool clusters_ = false;
  std::size_t shared_limit_ = 0;
  Queue queue_;
  cudaStream_t recording_ = nullptr;
  // by number of sequences: which steps ran kernel by kernel, and graphs of those that came again
  std::set<std::int64_t> ran_;
  std::map<std::int64_t, Graph> graphs_;

  std::int64_t slots_ = 0;
  std::int64_t capacity_ = 0;
  std::int64_t count_ = 0;  // of this step
  int splits_ = 1;

  Bytes cache_;
  CacheLayout layout_;
  Buffer<int> step_slots_, lengths_, positions_;
  std::vector<int> step_slots_host_;
  Buffer<std::int64_t> tokens_, next_, best_at_;
  Buffer<float> best_, heads_, shares_, logits_;
  Bytes residual_, delta_, normed_, mixed_, gated_;
  Buffer<unsigned> arrived_;

  Buffer<SteerView> steering_;  // [slot][layer]
  int max_rank_ = 0;            // of all that was in use: graphs hold it
};

void CudaBackend::reserve(std::int64_t slots, std::int64_t capacity) {
  const OnDevice here(device_);
  if (slots != slots_ || capacity != capacity_) allocate(slots, capacity);
  const std::vector<int> nothing(static_cast<std::size_t>(slots), 0);
  const std::vector<SteerView> unsteered(static_cast<std::size_t>(slots) * spec_.layers.size());
  upload(lengths_.data(), nothing.data(), slots);
  upload(positions_.data(), nothing.data(), slots);
  upload(steering_.data(), unsteered.data(), static_cast<std::int64_t>(unsteered.size()));
}

void CudaBackend::allocate(std::int64_t slots, std::int64_t capacity) {
  slots_ = capacity_ = 0;  // until all of it is allocated
  forget_graphs();
  layout_ = CacheLayout(spec_, slots, capacity);
  cache_.grow(layout_.bytes(), layout_.what());

  const std::string what = "memory for a step of " + std::to_string(slots) + " sequences";
  const auto grow = [&](auto& buffer, std::int64_t width) {
    buffer.grow(static_cast<std::size_t>(slots * width), what);
  };
  const std::int64_t item = size_of(spec_.dtype), width = spec_.width;
  const auto query_heads = static_cast<int>(spec_.heads),
             kv_heads = static_cast<int>(spec_.kv_heads);
  const std::int64_t queries = spec_.heads * spec_.head_width;
  const int groups = head_groups(query_heads, kv_heads);
  splits_ = splits_for(1, query_heads, kv_heads, capacity, processors_);
  for (auto* buffer : {&step_slots_, &lengths_, &positions_}) grow(*buffer, 1);
  for (auto* buffer : {&tokens_, &next_}) grow(*buffer, 1);
  for (auto* buffer : {&residual_, &delta_, &normed_}) grow(*buffer, width * item);
  grow(best_, kPredictBlocks);
  grow(best_at_, kPredictBlocks);
  grow(heads_, queries + 2 * spec_.kv_heads * spec_.head_width);
  grow(shares_, spec_.heads * splits_ * (spec_.head_width + 2));
  grow(mixed_, queries * item);
  grow(gated_, spec_.mlp_width * item);
  grow(logits_, spec_.head.rows);
  grow(arrived_, groups + 1);
  grow(steering_, static_cast<std::int64_t>(spec_.layers.size()));
  check(cudaMemsetAsync(arrived_.data(), 0, arrived_.size() * sizeof(unsigned), queue_.stream),
        "clearing of counters");
  step_slots_host_.clear();
  slots_ = slots;
  capacity_ = capacity;
}

void CudaBackend::copy_cache(std::size_t layer, std::int64_t slot, std::int64_t first,
                             std::int64_t count, const CacheSource& keys,
                             const CacheSource& values) {
  const OnDevice here(device_);
  const std::int64_t cells = layout_.cells(layer);
  const std::int64_t skipped = std::max<std::int64_t>(0, count - cells);
  CopyCacheArguments a;
  for (int which = 0; which < 2; ++which) {
    const CacheSource& source = which == 0 ? keys : values;
    a.source[which] = static_cast<const unsigned char*>(source.data) +
                      skipped * source.token_stride * size_of(spec_.dtype);
    a.head_stride[which] = source.head_stride;
    a.token_stride[which] = source.token_stride;
    a.cache[which] = cache_.data() + layout_.at(layer, which, slot);
  }
  a.first = first + skipped;
  a.count = static_cast<int>(count - skipped);
  a.cells = static_cast<int>(cells);
  a.kv_heads = static_cast<int>(spec_.kv_heads);
  a.width = static_cast<int>(spec_.head_width);
  run_copy_cache({queue_.stream, false}, spec_.dtype, a);
}

void CudaBackend::start_slot(std::int64_t slot, std::int64_t length, std::int64_t position) {
  const OnDevice here(device_);
  const auto tokens = static_cast<int>(length), next = static_cast<int>(position);
  upload(lengths_.data() + slot, &tokens, 1);
  upload(positions_.data() + slot, &next, 1);
}

void CudaBackend::steer_slot(std::int64_t slot, const std::vector<const Steering*>& layers) {
  const OnDevice here(device_);
  std::vector<SteerView> views(spec_.layers.size());
  for (std::size_t l = 0; l < layers.size(); ++l) {
    if (layers[l] == nullptr) continue;
    views[l] = static_cast<const DeviceSteering*>(layers[l])->view();
    if (views[l].rank > max_rank_) {
      max_rank_ = views[l].rank;
      forget_graphs();
    }
  }
  const auto count = static_cast<std::int64_t>(views.size());
  upload(steering_.data() + slot * count, views.data(), count);
}

void CudaBackend::run(const StepInput& input, const std::function<void()>& schedule) {
  const OnDevice here(device_);
  count_ = input.count;
  const std::vector<int> slots(input.slots, input.slots + input.count);
  if (slots != step_slots_host_) {
    upload(step_slots_.data(), slots.data(), count_);
    step_slots_host_ = slots;
  }
  copy(tokens_.data(), input.tokens, count_, cudaMemcpyDeviceToDevice);

  if (ran_.insert(count_).second) {
    schedule();  // at once: it also loads the kernels, which a capture must not do
  } else {
    Graph& graph = graphs_[count_];
    if (!graph) graph = recorded(schedule);
    graph.run(queue_.stream);
  }

  copy(input.next, next_.data(), count_, cudaMemcpyDeviceToDevice);
  if (input.logits == nullptr) return;
  for (std::int64_t i = 0, next = 0; i < count_; i = next) {  // neighbours in one copy
    while (next < count_ && input.slots[next] - input.slots[i] == next - i) ++next;
    copy(input.logits + input.slots[i] * spec_.head.rows, logits_.data() + i * spec_.head.rows,
         (next - i) * spec_.head.rows, cudaMemcpyDeviceToDevice);
  }
}

Graph CudaBackend::recorded(const std::function<void()>& schedule) {
  const Queue queue = std::exchange(queue_, Queue{recording_, queue_.overlap});
  try {
    Graph graph = Graph::record(recording_, schedule);
    queue_ = queue;
    return graph;
  } catch (...) {
    queue_ = queue;
    throw;
  }
}

void CudaBackend::embed() {
  EmbedArguments a;
  a.embedding = spec_.embedding.weight;
  a.stride = spec_.embedding.stride;
  a.vocabulary = spec_.embedding.rows;
  a.tokens = tokens_.data();
  a.scale = spec_.embedding_scale;
  a.residual = residual_.data();
  a.width = static_cast<int>(spec_.width);
  run_embed(queue_, spec_.dtype, a, static_cast<int>(count_));
}

void CudaBackend::add_and_norm(const AddAndNorm& what) {
  AddArguments a;
  a.residual = residual_.data();
  a.delta = what.add ? delta_.data() : nullptr;
  a.delta_norm = view_of(what.delta_norm);
  a.norm = view_of(what.norm);
  a.out = normed_.data();
  a.slots = step_slots_.data();
  a.norm_eps = spec_.norm_eps;
  a.norm_plus_one = spec_.norm_plus_one;
  a.width = static_cast<int>(spec_.width);
  if (what.steer_after >= 0) {
    a.steering = steering_.data() + what.steer_after;
    a.steering_stride = static_cast<std::int64_t>(spec_.layers.size());
  }
  run_add_and_norm(queue_, spec_.dtype, a, static_cast<int>(count_), max_rank_, clusters_,
                   shared_limit_);
}

void CudaBackend::multiply(Output output, Product product, const Bytes& x, void* y) {
  product.x = x.data();
  product.batch = static_cast<int>(count_);
  product.y = y;
  product.gate = spec_.gate;
  run_product(queue_, spec_.dtype, output, product, processors_, spec_.tile_plan);
}

void CudaBackend::project_heads(const LayerSpec& layer) {
  Product product;
  for (const LinearSpec* linear : {&layer.query, &layer.key, &layer.value}) product.add(*linear);
  multiply(Output::floats, product, normed_, heads_.data());
}

void CudaBackend::attend(std::size_t index) {
  const LayerSpec& layer = spec_.layers[index];
  const RopeSpec& rope = spec_.ropes[layer.rope];
  AttendArguments a;
  a.heads = heads_.data();
  a.query_norm = view_of(layer.query_norm);
  a.key_norm = view_of(layer.key_norm);
  a.cosines = rope.cosines;
  a.sines = rope.sines;
  a.half = static_cast<int>(rope.half);
  a.keys = cache_.data() + layout_.at(index, 0, 0);
  a.values = cache_.data() + layout_.at(index, 1, 0);
  a.slots = step_slots_.data();
  a.lengths = lengths_.data();
  a.positions = positions_.data();
  a.query_heads = static_cast<int>(spec_.heads);
  a.kv_heads = static_cast<int>(spec_.kv_heads);
  a.width = static_cast<int>(spec_.head_width);
  a.cells = static_cast<int>(layout_.cells(index));
  a.scale = spec_.attention_scale;
  a.softcap = spec_.attention_softcap;
  a.norm_eps = spec_.norm_eps;
  a.norm_plus_one = spec_.norm_plus_one;
  a.out = mixed_.data();
  a.shares = shares_.data();
  a.arrived = arrived_.data();
  a.splits = std::min(splits_, splits_for(static_cast<int>(count_), a.query_heads, a.kv_heads,
                                          a.cells, processors_));
  run_attention(queue_, spec_.dtype, a, static_cast<int>(count_));
}

void CudaBackend::project_attention(const LayerSpec& layer) {
  Product product;
  product.add(layer.output);
  multiply(Output::model, product, mixed_, delta_.data());
}

void CudaBackend::gated(const LayerSpec& layer) {
  Product product;
  product.add(layer.gate);
  product.add(layer.up);
  multiply(Output::gated, product, normed_, gated_.data());
}

void CudaBackend::project_mlp(const LayerSpec& layer) {
  Product product;
  product.add(layer.down);
  multiply(Output::model, product, gated_, delta_.data());
}

void CudaBackend::predict() {
  Product product;
  product.add(spec_.head);
  multiply(Output::floats, product, normed_, logits_.data());
  PredictArguments a;
  a.logits = logits_.data();
  a.vocabulary = spec_.head.rows;
  a.softcap = spec_.logits_softcap;
  a.next = next_.data();
  a.slots = step_slots_.data();
  a.lengths = lengths_.data();
  a.positions = positions_.data();
  a.best = best_.data();
  a.best_at = best_at_.data();
  // behind the counters of attention
  a.arrived = arrived_.data() +
              slots_ * head_groups(static_cast<int>(spec_.heads), static_cast<int>(spec_.kv_heads));
  run_predict(queue_, spec_.dtype, a, static_cast<int>(count_));
}

}  // namespace

std::unique_ptr<Backend> make_backend(DecoderSpec spec, int device) {
  return std::make_unique<CudaBackend>(std::move(spec), device);
}

std::unique_ptr<Steering> make_steering(const SteeringSource& source, int device, void* stream) {
  return std::make_unique<DeviceSteering>(source, device, static_cast<cudaStream_t>(stream));
}

}  // namespace dive::cuda
