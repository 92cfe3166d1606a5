#include "engine_bindings.h"

#include <pybind11/stl.h>

#include <cmath>
#include <initializer_list>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "cpu/cpu_backend.h"
#include "engine.h"
#include "tensor.h"

namespace py = pybind11;

namespace dive {
namespace {

using cpu::Steering;

[[noreturn]] void fail(const std::string& text) { throw py::value_error(text); }

// One entry of a description, by its name; what is said about it begins with the path to it.
struct Entries {
  py::dict dict;
  std::string path;

  Entries(py::handle object, std::string at) : path(std::move(at)) {
    if (!py::isinstance<py::dict>(object)) {
      fail(path + " is a " + Py_TYPE(object.ptr())->tp_name + ", want a dict");
    }
    dict = py::reinterpret_borrow<py::dict>(object);
  }
  std::string name(const char* key) const { return path.empty() ? key : path + "." + key; }
  py::object get(const char* key) const {
    if (!dict.contains(key)) fail(name(key) + " is missing");
    return dict[key];
  }
  std::int64_t whole(const char* key, std::int64_t least) const {
    std::int64_t value = 0;
    try {
      value = get(key).cast<std::int64_t>();
    } catch (const py::cast_error&) {
      fail(name(key) + " is no whole number");
    }
    if (value < least || value > (std::int64_t{1} << 40)) {
      fail(name(key) + " is " + std::to_string(value) + ", want at least " + std::to_string(least));
    }
    return value;
  }
  float number(const char* key) const {
    double value = 0;
    try {
      value = get(key).cast<double>();
    } catch (const py::cast_error&) {
      fail(name(key) + " is no number");
    }
    if (!std::isfinite(value) || value < 0) {
      fail(name(key) + " is " + std::to_string(value) + ", want a finite number >= 0");
    }
    return static_cast<float>(value);
  }
  py::sequence list(const char* key) const {
    const py::object value = get(key);
    if (!py::isinstance<py::list>(value) && !py::isinstance<py::tuple>(value)) {
      fail(name(key) + " is a " + Py_TYPE(value.ptr())->tp_name + ", want a list");
    }
    return value;
  }
  std::string text(const char* key) const {
    const py::object value = get(key);
    if (!py::isinstance<py::str>(value)) fail(name(key) + " is no text");
    return value.cast<std::string>();
  }
};

LinearSpec read_linear(const Entries& from, const char* key, DType dtype, std::int64_t rows,
                       std::int64_t columns) {
  const py::sequence pair = from.list(key);
  if (pair.size() != 2) fail(from.name(key) + " want [weight, bias or None]");
  TensorArgument weight(from.name(key) + ".weight", pair[0]);
  weight.want_dtype({dtype});
  weight.want_shape({rows, columns}, "[out, in]");
  weight.want_rows();
  LinearSpec linear;
  linear.weight = weight.data();
  linear.stride = weight.size(0) > 1 ? weight.stride(0) : columns;
  linear.rows = weight.size(0);
  linear.columns = columns;
  const py::object bias_object = pair[1];
  if (!bias_object.is_none()) {
    TensorArgument bias(from.name(key) + ".bias", bias_object);
    bias.want_dtype({dtype});
    bias.want_shape({linear.rows}, "[out]");
    bias.want_rows();
    linear.bias = bias.data();
  }
  return linear;
}

NormSpec read_norm(const Entries& from, const char* key, DType dtype, std::int64_t width,
                   bool needed) {
  const py::object object = from.get(key);
  if (object.is_none() && !needed) return {};
  TensorArgument weight(from.name(key), object);
  weight.want_dtype({dtype, DType::f32});
  weight.want_shape({width}, "[width]");
  weight.want_rows();
  return {weight.data(), weight.dtype()};
}

std::vector<RopeSpec> read_ropes(const Entries& from, std::int64_t head_width) {
  std::vector<RopeSpec> ropes;
  const py::sequence list = from.list("ropes");
  for (std::size_t i = 0; i < list.size(); ++i) {
    const std::string at = "ropes[" + std::to_string(i) + "]";
    const Entries entry(list[i], at);
    TensorArgument cosines(at + ".cos", entry.get("cos")), sines(at + ".sin", entry.get("sin"));
    for (TensorArgument* table : {&cosines, &sines}) {
      table->want_dtype({DType::f32});
      table->want_shape({cosines.dimensions() > 0 ? cosines.size(0) : -1, -1},
                        "[positions, half of the rotated width]");
      table->want_rows();
      if (table->size(0) > 1 && table->stride(0) != table->size(1)) table->fail("has gaps");
    }
    if (cosines.size(1) != sines.size(1)) sines.fail("is not as wide as cos");
    if (2 * cosines.size(1) > head_width) cosines.fail("is wider than a head");
    ropes.push_back({static_cast<const float*>(cosines.data()),
                     static_cast<const float*>(sines.data()), cosines.size(0), cosines.size(1)});
  }
  if (ropes.empty()) fail("ropes is empty, want one table or more");
  return ropes;
}

ModelSpec read_model(const Entries& from) {
  ModelSpec m;
  const std::string dtype = from.text("dtype");
  if (dtype != "float32" && dtype != "bfloat16") {
    fail("dtype is '" + dtype + "', want float32 or bfloat16");
  }
  m.dtype = dtype == "float32" ? DType::f32 : DType::bf16;
  m.width = from.whole("width", 1);
  m.heads = from.whole("heads", 1);
  m.kv_heads = from.whole("kv_heads", 1);
  m.head_width = from.whole("head_width", 1);
  m.mlp_width = from.whole("mlp_width", 1);
  if (m.heads % m.kv_heads != 0) {
    fail("heads is " + std::to_string(m.heads) + ", want a multiple of kv_heads, " +
         std::to_string(m.kv_heads));
  }
  m.norm_eps = from.number("norm_eps");
  m.norm_plus_one = from.whole("norm_plus_one", 0) != 0;
  m.attention_scale = from.number("attention_scale");
  m.attention_softcap = from.number("attention_softcap");
  m.logits_softcap = from.number("logits_softcap");
  m.embedding_scale = from.number("embedding_scale");
  const std::string gate = from.text("gate");
  if (gate == "silu") {
    m.gate = Gate::silu;
  } else if (gate == "gelu") {
    m.gate = Gate::gelu;
  } else if (gate == "gelu_tanh") {
    m.gate = Gate::gelu_tanh;
  } else {
    fail("gate is '" + gate + "', want silu, gelu or gelu_tanh");
  }
  m.embedding = read_linear(from, "embedding", m.dtype, -1, m.width);
  m.head = read_linear(from, "head", m.dtype, -1, m.width);
  if (m.embedding.rows < 1 || m.head.rows < 1) fail("embedding and head want a vocabulary");
  m.final_norm = read_norm(from, "final_norm", m.dtype, m.width, true);
  m.ropes = read_ropes(from, m.head_width);
  const std::int64_t queries = m.heads * m.head_width, keys = m.kv_heads * m.head_width;
  const py::sequence layers = from.list("layers");
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const Entries entry(layers[i], "layers[" + std::to_string(i) + "]");
    LayerSpec l;
    l.before_attention = read_norm(entry, "before_attention", m.dtype, m.width, true);
    l.after_attention = read_norm(entry, "after_attention", m.dtype, m.width, false);
    l.before_mlp = read_norm(entry, "before_mlp", m.dtype, m.width, true);
    l.after_mlp = read_norm(entry, "after_mlp", m.dtype, m.width, false);
    l.query_norm = read_norm(entry, "query_norm", m.dtype, m.head_width, false);
    l.key_norm = read_norm(entry, "key_norm", m.dtype, m.head_width, false);
    l.query = read_linear(entry, "query", m.dtype, queries, m.width);
    l.key = read_linear(entry, "key", m.dtype, keys, m.width);
    l.value = read_linear(entry, "value", m.dtype, keys, m.width);
    l.output = read_linear(entry, "output", m.dtype, m.width, queries);
    l.gate = read_linear(entry, "gate", m.dtype, m.mlp_width, m.width);
    l.up = read_linear(entry, "up", m.dtype, m.mlp_width, m.width);
    l.down = read_linear(entry, "down", m.dtype, m.width, m.mlp_width);
    l.window = entry.whole("window", 0);
    l.rope = static_cast<std::size_t>(entry.whole("rope", 0));
    if (l.rope >= m.ropes.size()) fail(entry.name("rope") + " names no table of ropes");
    m.layers.push_back(l);
  }
  if (m.layers.empty()) fail("layers is empty, want one or more");
  return m;
}

Engine make_engine(ModelSpec spec) {
  auto backend = std::make_unique<cpu::CpuBackend>(spec);
  return Engine(std::move(spec), std::move(backend));
}

// The engine with what it reads: while it lives, so do the tensors it was given.
class BoundEngine {
 public:
  explicit BoundEngine(const py::dict& spec)
      : kept_(spec.attr("copy")()), engine_(make_engine(read_model(Entries(spec, "")))) {}

  void reserve(std::int64_t rows, std::int64_t capacity) {
    const auto lock = locked();
    if (rows < 1 || rows > 65536) fail("rows is " + std::to_string(rows) + ", want 1 to 65536");
    if (capacity < 1 || capacity > (std::int64_t{1} << 24)) {
      fail("capacity is " + std::to_string(capacity) + ", want 1 to 16777216 tokens");
    }
    engine_.reserve(rows, capacity);
    steerings_.assign(static_cast<std::size_t>(rows), py::none());
  }

  void set_ropes(const py::list& ropes) {
    const auto lock = locked();
    py::dict holder;
    holder["ropes"] = ropes.attr("copy")();
    std::vector<RopeSpec> read = read_ropes(Entries(holder, ""), engine_.spec().head_width);
    if (read.size() != engine_.spec().ropes.size()) {
      fail("ropes has " + std::to_string(read.size()) + " tables, want " +
           std::to_string(engine_.spec().ropes.size()));
    }
    engine_.set_ropes(std::move(read));
    kept_["ropes"] = holder["ropes"];
  }

  void adopt(std::int64_t layer, std::int64_t row, std::int64_t first, py::handle key_object,
             py::handle value_object) {
    const auto lock = locked();
    const ModelSpec& m = engine_.spec();
    if (layer < 0 || layer >= static_cast<std::int64_t>(m.layers.size())) {
      fail("layer is " + std::to_string(layer) + ", want 0 to " +
           std::to_string(m.layers.size() - 1));
    }
    check_row("row", row);
    TensorArgument keys("keys", key_object), values("values", value_object);
    for (TensorArgument* tensor : {&keys, &values}) {
      tensor->want_dtype({m.dtype});
      tensor->want_shape({m.kv_heads, keys.dimensions() == 3 ? keys.size(1) : -1, m.head_width},
                         "[kv heads, tokens, head width]");
      if (tensor->numel() > 0 && tensor->size(2) > 1 && tensor->stride(2) != 1) {
        tensor->fail("has heads with gaps, want each head's numbers one after another");
      }
    }
    const std::int64_t count = keys.size(1);
    if (first < 0 || first + count > engine_.capacity()) {
      keys.fail("covers the tokens " + std::to_string(first) + " to " +
                std::to_string(first + count) + ", want at most " +
                std::to_string(engine_.capacity()) + ", the room that was reserved");
    }
    if (keys.numel() == 0) return;
    engine_.adopt(layer, row, first, count, {keys.data(), keys.stride(0), keys.stride(1)},
                  {values.data(), values.stride(0), values.stride(1)});
  }

  void start_row(std::int64_t row, std::int64_t length, std::int64_t position) {
    const auto lock = locked();
    check_row("row", row);
    if (length < 0 || length > engine_.capacity()) {
      fail("length is " + std::to_string(length) + ", want 0 to " +
           std::to_string(engine_.capacity()) + ", the room that was reserved");
    }
    if (position < 0) fail("position is " + std::to_string(position) + ", want 0 or more");
    engine_.start_row(row, length, position);
  }

  void steer_row(std::int64_t row, const py::object& steering) {
    const auto lock = locked();
    check_row("row", row);
    const ModelSpec& m = engine_.spec();
    if (steering.is_none()) {
      engine_.steer_row(row, {});
      steerings_[static_cast<std::size_t>(row)] = py::none();
      return;
    }
    if (!py::isinstance<py::list>(steering) && !py::isinstance<py::tuple>(steering)) {
      fail(std::string("steering is a ") + Py_TYPE(steering.ptr())->tp_name +
           ", want a list with a Steering or None a layer, or None");
    }
    const py::tuple own = py::tuple(steering);
    std::vector<const Steering*> layers;
    for (const py::handle item : own) {
      if (!item.is_none() && !py::isinstance<Steering>(item)) {
        fail(std::string("steering holds a ") + Py_TYPE(item.ptr())->tp_name +
             ", want a Steering or None a layer");
      }
      layers.push_back(item.is_none() ? nullptr : &item.cast<const Steering&>());
      const Steering* const one = layers.back();
      if (one == nullptr) continue;
      if (one->width() != m.width) {
        fail("steering has width " + std::to_string(one->width()) + ", want " +
             std::to_string(m.width));
      }
      if (one->dtype() != m.dtype) {
        fail(std::string("steering has weights of ") + name_of(one->dtype()) + ", want " +
             name_of(m.dtype) + ", the model's dtype");
      }
    }
    if (layers.size() != m.layers.size()) {
      fail("steering has " + std::to_string(layers.size()) + " entries, want " +
           std::to_string(m.layers.size()) + ", one a layer");
    }
    engine_.steer_row(row, std::move(layers));
    steerings_[static_cast<std::size_t>(row)] = own;
  }

  void step(py::handle token_object, py::handle row_object, py::handle next_object,
            py::handle logits_object) {
    const auto lock = locked();
    const ModelSpec& m = engine_.spec();
    TensorArgument tokens("tokens", token_object), rows("rows", row_object),
        next("next", next_object);
    tokens.want_shape({-1}, "[sequences]");
    for (TensorArgument* tensor : {&tokens, &rows, &next}) {
      tensor->want_int64();
      tensor->want_shape({tokens.size(0)}, "[sequences]");
      tensor->want_rows();
    }
    next.want_writable();
    const std::int64_t count = tokens.size(0);
    // copies: `next` may share memory with either, and others may write while the lock is free
    const auto copy_of = [&](const TensorArgument& from) {
      const auto* const first = static_cast<const std::int64_t*>(from.data());
      return std::vector<std::int64_t>(first, first + count);
    };
    const std::vector<std::int64_t> token = copy_of(tokens), row = copy_of(rows);
    seen_.assign(static_cast<std::size_t>(engine_.rows()), 0);
    for (std::int64_t i = 0; i < count; ++i) {
      const auto at = static_cast<std::size_t>(i);
      const std::string where = "[" + std::to_string(i) + "]";
      if (token[at] < 0 || token[at] >= m.embedding.rows) {
        tokens.fail(where + " is " + std::to_string(token[at]) + ", want 0 to " +
                    std::to_string(m.embedding.rows - 1));
      }
      check_row("rows" + where, row[at]);
      auto& seen = seen_[static_cast<std::size_t>(row[at])];
      if (seen != 0) rows.fail(where + " repeats row " + std::to_string(row[at]));
      seen = 1;
      if (engine_.length(row[at]) >= engine_.capacity()) {
        rows.fail(where + " is row " + std::to_string(row[at]) + ", whose cache of " +
                  std::to_string(engine_.capacity()) + " tokens is full");
      }
      for (const RopeSpec& rope : m.ropes) {
        if (engine_.position(row[at]) >= rope.positions) {
          rows.fail(where + " is at position " + std::to_string(engine_.position(row[at])) +
                    ", want less than " + std::to_string(rope.positions) + ", as ropes has");
        }
      }
    }
    float* logits = nullptr;
    if (!logits_object.is_none()) {
      TensorArgument all("logits", logits_object);
      all.want_dtype({DType::f32});
      all.want_shape({engine_.rows(), m.head.rows}, "[rows, vocabulary]");
      all.want_rows();
      all.want_writable();
      if (all.size(0) > 1 && all.stride(0) != m.head.rows) all.fail("has gaps between its rows");
      logits = static_cast<float*>(all.data());
    }
    if (count == 0) return;
    const py::gil_scoped_release unlocked;
    engine_.step(token.data(), row.data(), count, static_cast<std::int64_t*>(next.data()), logits);
  }

  std::int64_t cache_bytes() const { return engine_.cache_bytes(); }

 private:
  std::unique_lock<std::mutex> locked() {
    std::unique_lock<std::mutex> lock(busy_, std::try_to_lock);
    if (!lock) throw std::runtime_error("this engine is at work in another thread");
    return lock;
  }
  void check_row(const std::string& name, std::int64_t row) const {
    if (row < 0 || row >= engine_.rows()) {
      fail(name + " is " + std::to_string(row) + ", want one of the " +
           std::to_string(engine_.rows()) + " rows that are reserved");
    }
  }

  py::object kept_;
  Engine engine_;
  std::vector<py::object> steerings_;
  std::vector<char> seen_;
  std::mutex busy_;
};

}  // namespace

void bind_engine(py::module_& module) {
  py::class_<BoundEngine>(module, "Engine", "A decoder's weights, bound, with a cache of its own.")
      .def(py::init<const py::dict&>(), py::arg("spec"))
      .def("reserve", &BoundEngine::reserve, py::arg("rows"), py::arg("capacity"))
      .def("set_ropes", &BoundEngine::set_ropes, py::arg("ropes"))
      .def("adopt", &BoundEngine::adopt, py::arg("layer"), py::arg("row"), py::arg("first"),
           py::arg("keys"), py::arg("values"))
      .def("start_row", &BoundEngine::start_row, py::arg("row"), py::arg("length"),
           py::arg("position"))
      .def("steer_row", &BoundEngine::steer_row, py::arg("row"), py::arg("steering"))
      .def("step", &BoundEngine::step, py::arg("tokens"), py::arg("rows"), py::arg("next"),
           py::arg("logits") = py::none())
      .def_property_readonly("cache_bytes", &BoundEngine::cache_bytes);
}

}  // namespace dive
