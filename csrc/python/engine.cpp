#include "python/engine.h"

#include <pybind11/stl.h>

#include <atomic>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "cpu/backend.h"
#include "cpu/cores.h"
#ifdef DIVE_CUDA
#include "cuda/backend.h"
#endif
#include "../engine.h"
#include "python/arguments.h"
#include "python/decoder_reader.h"
#include "python/tensor_argument.h"

namespace py = pybind11;

namespace dive {
namespace {

std::unique_ptr<Backend> make_backend(const DecoderSpec& spec,
                                      [[maybe_unused]] dlpack::Device device) {
#ifdef DIVE_CUDA
  if (device.type != dlpack::kCpu) {
    const std::string reason = cuda::unsupported(spec, device.id);
    if (!reason.empty()) fail(reason);
    return cuda::make_backend(spec, device.id);
  }
#endif
  return std::make_unique<cpu::CpuBackend>(spec);
}

// Admits one call at a time, and refuses one that a tensor's `__dlpack__` makes during another.
class Turn {
 public:
  explicit Turn(std::atomic<bool>& taken) : taken_(taken) {
    if (taken_.exchange(true)) {
      throw std::runtime_error("this engine is at work in another thread or call");
    }
  }
  ~Turn() { taken_ = false; }
  Turn(const Turn&) = delete;
  Turn& operator=(const Turn&) = delete;

 private:
  std::atomic<bool>& taken_;
};

// The engine with the tensors that it reads, which it keeps alive. Each step first checks that
// their memory has not moved.
class BoundEngine {
 public:
  explicit BoundEngine(const py::dict& spec)
      : device_(read_device(spec)),
        tensors_(tensors_of(device_)),
        engine_(bind(spec, device_, tensors_, weights_)) {}

  void use_stream(std::uintptr_t stream) {
    const Turn turn(busy_);
    engine_.use_stream(reinterpret_cast<void*>(stream));
  }

  void reserve(std::int64_t slots, std::int64_t capacity) {
    const Turn turn(busy_);
    if (slots < 1 || slots > 65535) fail("slots is " + std::to_string(slots) + ", want 1 to 65535");
    if (capacity < 1 || capacity > (std::int64_t{1} << 24)) {
      fail("capacity is " + std::to_string(capacity) + ", want 1 to 16777216 tokens");
    }
    {
      const py::gil_scoped_release others;  // it waits for the device
      engine_.reserve(slots, capacity);
    }
    steerings_.assign(static_cast<std::size_t>(slots), {});
  }

  void set_ropes(const py::list& ropes) {
    const Turn turn(busy_);
    Kept kept;
    std::vector<RopeSpec> read = read_ropes(ropes, engine_.spec(), tensors_, kept);
    if (read.size() != engine_.spec().ropes.size()) {
      fail("ropes has " + std::to_string(read.size()) + " tables, want " +
           std::to_string(engine_.spec().ropes.size()));
    }
    engine_.set_ropes(std::move(read));
    ropes_ = std::move(kept);  // and those of the spec stay, unread
  }

  void copy_cache(py::handle layer_object, py::handle slot_object, py::handle first_object,
                  py::handle key_object, py::handle value_object) {
    const std::int64_t layer = whole("layer", layer_object), slot = whole("slot", slot_object);
    const std::int64_t first = whole("first", first_object);
    const Turn turn(busy_);
    const DecoderSpec& m = engine_.spec();
    if (layer < 0 || layer >= static_cast<std::int64_t>(m.layers.size())) {
      fail("layer is " + std::to_string(layer) + ", want 0 to " +
           std::to_string(m.layers.size() - 1));
    }
    check_slot("slot", slot);
    TensorArgument keys("keys", key_object, tensors_), values("values", value_object, tensors_);
    for (TensorArgument* tensor : {&keys, &values}) {
      tensor->want_dtype({m.dtype});
      tensor->want_shape({m.kv_heads, keys.dimensions() == 3 ? keys.size(1) : -1, m.head_width},
                         "[kv heads, tokens, head width]");
      if (tensor->numel() > 0 && tensor->size(2) > 1 && tensor->stride(2) != 1) {
        tensor->fail("has heads with gaps, want each head's numbers one after another");
      }
      tensor->want_storage();
    }
    const std::int64_t count = keys.size(1);
    if (first < 0 || first > engine_.capacity() || count > engine_.capacity() - first) {
      keys.fail("has " + std::to_string(count) + " tokens from " + std::to_string(first) +
                " on, want them in 0 to " + std::to_string(engine_.capacity()) +
                ", the capacity that was reserved");
    }
    if (keys.numel() == 0) return;
    keys.check_unmoved();
    values.check_unmoved();
    engine_.copy_cache(layer, slot, first, count, {keys.data(), keys.stride(0), keys.stride(1)},
                       {values.data(), values.stride(0), values.stride(1)});
  }

  void start_slot(std::int64_t slot, std::int64_t length, std::int64_t position) {
    const Turn turn(busy_);
    check_slot("slot", slot);
    if (length < 0 || length > engine_.capacity()) {
      fail("length is " + std::to_string(length) + ", want 0 to " +
           std::to_string(engine_.capacity()) + ", the capacity that was reserved");
    }
    if (position < 0 || position > kMostPosition) {
      fail("position is " + std::to_string(position) + ", want 0 to " +
           std::to_string(kMostPosition));
    }
    const py::gil_scoped_release others;
    engine_.start_slot(slot, length, position);
  }

  void steer_slot(std::int64_t slot, const py::object& steering) {
    const Turn turn(busy_);
    check_slot("slot", slot);
    const DecoderSpec& m = engine_.spec();
    if (steering.is_none()) {
      engine_.steer_slot(slot, {});
      steerings_[static_cast<std::size_t>(slot)].clear();
      return;
    }
    if (!py::isinstance<py::list>(steering) && !py::isinstance<py::tuple>(steering)) {
      fail(std::string("steering is a ") + Py_TYPE(steering.ptr())->tp_name +
           ", want a list with a Steering or None per layer, or None");
    }
    // its own items, whatever a class derived from list says about them
    const auto given = py::reinterpret_steal<py::object>(PySequence_Fast(steering.ptr(), ""));
    const auto count = static_cast<std::size_t>(PySequence_Fast_GET_SIZE(given.ptr()));
    if (count != m.layers.size()) {
      fail("steering has " + std::to_string(count) + " entries, want " +
           std::to_string(m.layers.size()) + ", one per layer");
    }
    const int device = device_.type == dlpack::kCpu ? kHost : device_.id;
    std::vector<const Steering*> layers;
    std::vector<py::object> own;
    for (std::size_t i = 0; i < count; ++i) {
      const py::handle item = PySequence_Fast_GET_ITEM(given.ptr(), static_cast<Py_ssize_t>(i));
      if (!item.is_none() && !py::isinstance<Steering>(item)) {
        fail(std::string("steering holds a ") + Py_TYPE(item.ptr())->tp_name +
             ", want a Steering or None per layer");
      }
      own.push_back(py::reinterpret_borrow<py::object>(item));
      layers.push_back(item.is_none() ? nullptr : &initialised<const Steering>(item, "Steering"));
      const Steering* const one = layers.back();
      if (one == nullptr) continue;
      if (one->width() != m.width) {
        fail("steering has width " + std::to_string(one->width()) + ", want " +
             std::to_string(m.width));
      }
      if (one->device() != device) {
        fail("steering was made for " + device_text(one->device()) + ", want " +
             device_text(device) + ", the engine's device");
      }
      if (one->dtype() != m.dtype) {
        fail(std::string("steering has weights of ") + name_of(one->dtype()) + ", want " +
             name_of(m.dtype) + ", the model's dtype");
      }
    }
    {
      const py::gil_scoped_release others;
      engine_.steer_slot(slot, std::move(layers));
    }
    steerings_[static_cast<std::size_t>(slot)] = std::move(own);
  }

  void step(py::handle token_object, py::handle slot_object, py::handle next_object,
            py::handle logits_object) {
    const Turn turn(busy_);
    const DecoderSpec& m = engine_.spec();
    TensorArgument tokens("tokens", token_object, tensors_), slots("slots", slot_object),
        next("next", next_object, tensors_);
    std::optional<TensorArgument> held;  // the logits, until the end of the step
    tokens.want_shape({-1}, "[sequences]");
    for (TensorArgument* tensor : {&tokens, &slots, &next}) {
      tensor->want_int64();
      tensor->want_shape({tokens.size(0)}, "[sequences]");
      tensor->want_rows();
    }
    next.want_writable();
    float* logits = nullptr;
    if (!logits_object.is_none()) {
      TensorArgument all("logits", logits_object, tensors_);
      all.want_dtype({DType::f32});
      all.want_shape({engine_.slots(), m.head.rows}, "[slots, vocabulary]");
      all.want_rows();
      all.want_writable();
      if (all.size(0) > 1 && all.stride(0) != m.head.rows)
        all.fail("has gaps between its rows, want none");
      all.check_unmoved();
      logits = static_cast<float*>(all.data());
      held = std::move(all);
    }
    // from here on no code of Python's runs
    for (const TensorArgument* tensor : {&tokens, &slots, &next}) tensor->check_unmoved();
    for (const Kept* kept : {&weights_, &ropes_}) {
      for (const TensorArgument& one : *kept) one.check_unmoved("the engine");
    }
    const std::int64_t count = tokens.size(0);
    // copies: `next` may share memory with either, and others may write while the lock is free
    const auto copy_of = [&](const TensorArgument& from) {
      const auto* const first = static_cast<const std::int64_t*>(from.data());
      return std::vector<std::int64_t>(first, first + count);
    };
    const std::vector<std::int64_t> slot = copy_of(slots);
    const bool on_host = device_.type == dlpack::kCpu;
    const std::vector<std::int64_t> token = on_host ? copy_of(tokens) : slot;
    seen_.assign(static_cast<std::size_t>(engine_.slots()), 0);
    for (std::int64_t i = 0; i < count; ++i) {
      const auto at = static_cast<std::size_t>(i);
      const std::string where = "[" + std::to_string(i) + "]";
      if (on_host && (token[at] < 0 || token[at] >= m.embedding.rows)) {
        tokens.fail(where + " is " + std::to_string(token[at]) + ", want 0 to " +
                    std::to_string(m.embedding.rows - 1));
      }
      check_slot("slots" + where, slot[at]);
      auto& seen = seen_[static_cast<std::size_t>(slot[at])];
      if (seen != 0) slots.fail(where + " repeats slot " + std::to_string(slot[at]));
      seen = 1;
      if (engine_.length(slot[at]) >= engine_.capacity()) {
        slots.fail(where + " is slot " + std::to_string(slot[at]) + ", whose cache of " +
                   std::to_string(engine_.capacity()) + " tokens is full");
      }
      for (const RopeSpec& rope : m.ropes) {
        if (engine_.position(slot[at]) >= rope.positions) {
          slots.fail(where + " is at position " + std::to_string(engine_.position(slot[at])) +
                     ", want less than " + std::to_string(rope.positions) + ", as ropes has");
        }
      }
    }
    if (count == 0) return;
    const py::gil_scoped_release unlocked;
    const auto* const own = static_cast<const std::int64_t*>(tokens.data());
    engine_.step(on_host ? token.data() : own, slot.data(), count,
                 static_cast<std::int64_t*>(next.data()), logits);
  }

  std::int64_t cache_bytes() const { return engine_.cache_bytes(); }

  int threads() const { return engine_.threads(); }
  void set_threads(std::int64_t count) {
    const Turn turn(busy_);
    const int most = cpu::physical_cores();
    if (count < 1 || count > most) {
      fail("threads is " + std::to_string(count) + ", want 1 to " + std::to_string(most) +
           ", the physical cores that this process may use");
    }
    engine_.set_threads(static_cast<int>(count));
  }

 private:
  static constexpr std::int64_t kMostPosition = std::int64_t{1} << 30;

  void check_slot(const std::string& name, std::int64_t slot) const {
    if (slot < 0 || slot >= engine_.slots()) {
      fail(name + " is " + std::to_string(slot) + ", want one of the " +
           std::to_string(engine_.slots()) + " slots that are reserved");
    }
  }

  static std::string device_text(int device) {
    return device == kHost ? "cpu" : "cuda:" + std::to_string(device);
  }

  static Engine bind(const py::dict& spec, dlpack::Device device, dlpack::Device tensors,
                     Kept& kept) {
    DecoderSpec model = read_decoder(spec, tensors, kept);
    auto backend = make_backend(model, device);
    return Engine(std::move(model), std::move(backend));
  }

  Kept weights_, ropes_;
  dlpack::Device device_;   // that computes
  dlpack::Device tensors_;  // that the tensors are on
  Engine engine_;
  std::vector<std::vector<py::object>> steerings_;  // of each slot; empty: none
  std::vector<char> seen_;
  std::atomic<bool> busy_{false};
};

}  // namespace

void bind_engine(py::module_& module) {
  const auto engine = [](auto call) { return method(call, "Engine"); };
  py::class_<BoundEngine>(module, "Engine", "A decoder's weights, bound, with a cache of its own.")
      .def(py::init<const py::dict&>(), py::arg("spec"))
      .def("use_stream", engine(&BoundEngine::use_stream), py::arg("stream"))
      .def("reserve", engine(&BoundEngine::reserve), py::arg("slots"), py::arg("capacity"))
      .def("set_ropes", engine(&BoundEngine::set_ropes), py::arg("ropes"))
      .def("copy_cache", engine(&BoundEngine::copy_cache), py::arg("layer"), py::arg("slot"),
           py::arg("first"), py::arg("keys"), py::arg("values"))
      .def("start_slot", engine(&BoundEngine::start_slot), py::arg("slot"), py::arg("length"),
           py::arg("position"))
      .def("steer_slot", engine(&BoundEngine::steer_slot), py::arg("slot"), py::arg("steering"))
      .def("step", engine(&BoundEngine::step), py::arg("tokens"), py::arg("slots"), py::arg("next"),
           py::arg("logits") = py::none())
      .def_property_readonly("cache_bytes", engine(&BoundEngine::cache_bytes))
      .def_property("threads", engine(&BoundEngine::threads), engine(&BoundEngine::set_threads));
  module.def("physical_cores", &cpu::physical_cores);
}

}  // namespace dive
