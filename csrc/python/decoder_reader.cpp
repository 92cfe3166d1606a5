#include "python/decoder_reader.h"

#include <cmath>
#include <utility>

namespace py = pybind11;

namespace dive {

void fail(const std::string& text) { throw py::value_error(text); }

namespace {

constexpr std::int64_t kMost = std::int64_t{1} << 40;  // of any size, and of a product's rows
constexpr std::size_t kMostEntries = 4096;             // of a list: layers, tables

// The entries of a description by name; messages begin with the path to an entry.
struct Entries {
  py::dict dict;
  std::string path;
  dlpack::Device device;  // of the tensors
  Kept& kept;

  Entries(py::handle object, std::string at, dlpack::Device where, Kept& keep)
      : path(std::move(at)), device(where), kept(keep) {
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
      fail(name(key) + " is not a whole number of 64 bits, want one");
    }
    if (value < least || value > kMost) {
      fail(name(key) + " is " + std::to_string(value) + ", want " + std::to_string(least) + " to " +
           std::to_string(kMost));
    }
    return value;
  }
  float number(const char* key) const {
    double value = 0;
    try {
      value = get(key).cast<double>();
    } catch (const py::cast_error&) {
      fail(name(key) + " is not a number, want one");
    }
    if (!std::isfinite(value) || value < 0) {
      fail(name(key) + " is " + std::to_string(value) + ", want a finite number >= 0");
    }
    return static_cast<float>(value);
  }
  // The items of a list or tuple as they are now, which a subclass may return differently each
  // time.
  std::vector<py::object> list(const char* key) const {
    const py::object value = get(key);
    if (!py::isinstance<py::list>(value) && !py::isinstance<py::tuple>(value)) {
      fail(name(key) + " is a " + Py_TYPE(value.ptr())->tp_name + ", want a list");
    }
    const py::sequence sequence = value;
    const std::size_t count = sequence.size();
    if (count > kMostEntries) {
      fail(name(key) + " has " + std::to_string(count) + " entries, want at most " +
           std::to_string(kMostEntries));
    }
    std::vector<py::object> items;
    for (std::size_t i = 0; i < count; ++i) items.push_back(sequence[i]);
    return items;
  }
  TensorArgument tensor(const std::string& at, py::handle value) const {
    TensorArgument argument(at, value, device);
    argument.want_storage();
    return argument;
  }
  std::string text(const char* key) const {
    const py::object value = get(key);
    if (!py::isinstance<py::str>(value))
      fail(name(key) + " is a " + Py_TYPE(value.ptr())->tp_name + ", want a text");
    return value.cast<std::string>();
  }
};

LinearSpec read_linear(const Entries& from, const char* key, DType dtype, std::int64_t rows,
                       std::int64_t columns) {
  const std::vector<py::object> pair = from.list(key);
  if (pair.size() != 2) {
    fail(from.name(key) + " has " + std::to_string(pair.size()) +
         " entries, want 2: a weight, and a bias or None");
  }
  TensorArgument weight = from.tensor(from.name(key) + ".weight", pair[0]);
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
    TensorArgument bias = from.tensor(from.name(key) + ".bias", bias_object);
    bias.want_dtype({dtype});
    bias.want_shape({linear.rows}, "[out]");
    bias.want_rows();
    linear.bias = bias.data();
    from.kept.push_back(std::move(bias));
  }
  from.kept.push_back(std::move(weight));
  return linear;
}

NormSpec read_norm(const Entries& from, const char* key, DType dtype, std::int64_t width,
                   bool needed) {
  const py::object object = from.get(key);
  if (object.is_none() && !needed) return {};
  TensorArgument weight = from.tensor(from.name(key), object);
  weight.want_dtype({dtype, DType::f32});
  weight.want_shape({width}, "[width]");
  weight.want_rows();
  from.kept.push_back(std::move(weight));
  return {from.kept.back().data(), from.kept.back().dtype()};
}

std::vector<RopeSpec> ropes_of(const Entries& from, std::int64_t head_width) {
  std::vector<RopeSpec> ropes;
  const std::vector<py::object> list = from.list("ropes");
  for (std::size_t i = 0; i < list.size(); ++i) {
    const std::string at = "ropes[" + std::to_string(i) + "]";
    const Entries entry(list[i], at, from.device, from.kept);
    TensorArgument cosines = entry.tensor(at + ".cos", entry.get("cos"));
    TensorArgument sines = entry.tensor(at + ".sin", entry.get("sin"));
    for (TensorArgument* table : {&cosines, &sines}) {
      table->want_dtype({DType::f32});
      table->want_shape({cosines.dimensions() > 0 ? cosines.size(0) : -1, -1},
                        "[positions, half of the rotated width]");
      table->want_rows();
      if (table->size(0) > 1 && table->stride(0) != table->size(1))
        table->fail("has gaps, want rows one after another");
    }
    if (cosines.size(1) != sines.size(1)) sines.fail("is of another width than cos, want the same");
    if (2 * cosines.size(1) > head_width)
      cosines.fail("is wider than half of a head, want at most that");
    ropes.push_back({static_cast<const float*>(cosines.data()),
                     static_cast<const float*>(sines.data()), cosines.size(0), cosines.size(1)});
    from.kept.push_back(std::move(cosines));
    from.kept.push_back(std::move(sines));
  }
  if (ropes.empty()) fail("ropes is empty, want one table or more");
  return ropes;
}

TilePlan tile_plan_of(const Entries& from, bool on_gpu) {
  if (!from.dict.contains("tile_plan")) return TilePlan::bytes;
  if (!on_gpu) fail("tile_plan is of a GPU, and the device is a CPU");
  const std::string name = from.text("tile_plan");
  if (name == "bytes") return TilePlan::bytes;
  if (name == "waves") return TilePlan::waves;
  if (name == "small") return TilePlan::small;
  if (name == "small_short") return TilePlan::small_short;
  fail("tile_plan is '" + name + "', want bytes, waves, small or small_short");
  return TilePlan::bytes;
}

DecoderSpec model_of(const Entries& from) {
  DecoderSpec m;
  const std::string dtype = from.text("dtype");
  const bool half = read_device(from.dict).type != dlpack::kCpu;  // there are kernels for it
  m.tile_plan = tile_plan_of(from, half);
  if (dtype == "float32") {
    m.dtype = DType::f32;
  } else if (dtype == "bfloat16") {
    m.dtype = DType::bf16;
  } else if (dtype == "float16" && half) {
    m.dtype = DType::f16;
  } else {
    fail("dtype is '" + dtype + "', want float32 or bfloat16" + (half ? " or float16" : ""));
  }
  m.width = from.whole("width", 1);
  m.heads = from.whole("heads", 1);
  m.kv_heads = from.whole("kv_heads", 1);
  m.head_width = from.whole("head_width", 1);
  m.mlp_width = from.whole("mlp_width", 1);
  if (m.heads % m.kv_heads != 0) {
    fail("heads is " + std::to_string(m.heads) + ", want a multiple of kv_heads, " +
         std::to_string(m.kv_heads));
  }
  if (m.heads > kMost / m.head_width) {
    fail("heads times head_width is above " + std::to_string(kMost) + ", which no model has");
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
  m.ropes = ropes_of(from, m.head_width);
  const std::int64_t queries = m.heads * m.head_width, keys = m.kv_heads * m.head_width;
  const std::vector<py::object> layers = from.list("layers");
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const std::string at = "layers[" + std::to_string(i) + "]";
    const Entries entry(layers[i], at, from.device, from.kept);
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
    if (l.rope >= m.ropes.size())
      fail(entry.name("rope") + " is " + std::to_string(l.rope) + ", want an index into ropes");
    m.layers.push_back(l);
  }
  if (m.layers.empty()) fail("layers is empty, want one or more");
  return m;
}

}  // namespace

dlpack::Device device_from(const std::string& name) {
  if (name == "cpu") return {dlpack::kCpu, 0};
  const std::string kind = "cuda:", number = name.substr(0, 5) == kind ? name.substr(5) : "";
  if (number.empty() || number.size() > 3 ||
      number.find_first_not_of("0123456789") != std::string::npos) {
    fail("device is '" + name + "', want cpu or cuda: and a number");
  }
#ifndef DIVE_CUDA
  fail("device is " + name + ", but dive._C was built without CUDA");
#endif
  return {dlpack::kCuda, std::stoi(number)};
}

dlpack::Device tensors_of(dlpack::Device device) {
#ifdef DIVE_HOST_CUDA
  if (device.type == dlpack::kCuda) return {dlpack::kCpu, device.id};
#endif
  return device;
}

dlpack::Device read_device(const py::dict& description) {
  if (!description.contains("device")) return {dlpack::kCpu, 0};
  Kept none;
  return device_from(Entries(description, "", {dlpack::kCpu, 0}, none).text("device"));
}

DecoderSpec read_decoder(const py::dict& description, dlpack::Device device, Kept& kept) {
  DecoderSpec model = model_of(Entries(description, "", device, kept));
  for (const TensorArgument& one : kept) one.check_unmoved("the engine");
  return model;
}

std::vector<RopeSpec> read_ropes(const py::list& ropes, const DecoderSpec& model,
                                 dlpack::Device device, Kept& kept) {
  py::dict holder;
  holder["ropes"] = ropes;
  std::vector<RopeSpec> read = ropes_of(Entries(holder, "", device, kept), model.head_width);
  for (const TensorArgument& one : kept) one.check_unmoved("the engine");
  return read;
}

}  // namespace dive
