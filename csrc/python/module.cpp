// What Python sees of dive._C. dive/_C.pyi has the signatures with their types.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cmath>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

#include "cpu/cores.h"
#include "cpu/isa.h"
#include "cpu/steer_step.h"
#include "cpu/steering.h"
#include "cpu/streams.h"
#include "python/engine.h"
#include "python/initialised.h"
#include "python/tensor_argument.h"
#ifdef DIVE_HOST_CUDA
#include "tests/host_cuda/bindings.h"
#endif

#ifndef DIVE_MODULE_NAME
#define DIVE_MODULE_NAME _C
#endif

namespace py = pybind11;

namespace dive {
namespace {

using cpu::Activation;
using cpu::MatrixView;
using cpu::Steering;

// Below this many numbers a step takes less time than another thread would need to profit.
constexpr std::int64_t kReleaseLockFrom = 1 << 18;

Activation activation_from(const std::string& name) {
  if (name == "silu") return Activation::silu;
  if (name == "gelu") return Activation::gelu;
  if (name == "tanh") return Activation::tanh;
  if (name == "identity") return Activation::identity;
  throw py::value_error("activation is '" + name + "', want silu, gelu, tanh or identity");
}

float positive(const char* name, double value) {
  if (!(std::isfinite(value) && value >= 0)) {
    throw py::value_error(std::string(name) + " is " + std::to_string(value) +
                          ", want a finite number >= 0");
  }
  return static_cast<float>(value);
}

MatrixView matrix(const TensorArgument& tensor) {
  return {tensor.data(), tensor.dtype(), tensor.stride(0), tensor.stride(1)};
}

MatrixView vector(const TensorArgument& tensor) {
  return {tensor.data(), tensor.dtype(), 0, tensor.stride(0)};
}

Steering pack_steering(py::handle down, py::handle down_bias, py::handle up, py::handle fixed,
                       py::handle scale_object, py::handle activation, py::handle norm_preserving,
                       py::handle eps) {
  const auto scale = plain<double>("scale", scale_object, "a number");
  TensorArgument a("down", down), bias("down_bias", down_bias), b("up", up);
  TensorArgument v("static", fixed);
  for (TensorArgument* tensor : {&a, &bias, &v}) {
    tensor->want_dtype({DType::f32, DType::bf16, DType::f16});
  }
  b.want_dtype({a.dtype()});
  a.want_shape({-1, -1}, "[rank, width]");
  cpu::SteeringSource source;
  source.rank = a.size(0);
  source.width = a.size(1);
  if (source.rank > Steering::kMaxRank || source.width < 1) {
    a.fail("has shape [" + std::to_string(source.rank) + ", " + std::to_string(source.width) +
           "], want a rank up to " + std::to_string(Steering::kMaxRank) + " and a width from 1");
  }
  bias.want_shape({source.rank}, "[rank]");
  b.want_shape({source.width, source.rank}, "[width, rank]");
  v.want_shape({source.width}, "[width]");
  if (!std::isfinite(scale)) {
    throw py::value_error("scale is " + std::to_string(scale) + ", want a finite number");
  }
  for (TensorArgument* tensor : {&a, &bias, &b, &v}) tensor->want_storage();
  for (TensorArgument* tensor : {&a, &bias, &b, &v}) tensor->check_unmoved();
  source.down = matrix(a);
  source.down_bias = vector(bias);
  source.up = matrix(b);
  source.fixed = vector(v);
  source.scale = static_cast<float>(scale);
  source.eps = positive("eps", plain<double>("eps", eps, "a number"));
  source.activation = activation_from(plain<std::string>("activation", activation, "a text"));
  source.norm_preserving = plain<bool>("norm_preserving", norm_preserving, "True or False");
  return Steering(source);
}

// The steering of each row: one for all, or a sequence with one or None for each. The dtype of the
// weights, float32 where nothing is steered, goes to `weights`.
// `kept` holds what a sequence may have made for this look alone.
std::vector<const Steering*> row_steerings(py::handle steering, std::int64_t rows,
                                           std::int64_t width, DType stream, DType& weights,
                                           std::vector<py::object>& kept) {
  std::vector<const Steering*> each;
  if (steering.is_none()) return each;
  if (py::isinstance<Steering>(steering)) {
    each.assign(static_cast<std::size_t>(rows), &initialised<const Steering>(steering, "Steering"));
  } else if (py::isinstance<py::sequence>(steering) && !py::isinstance<py::str>(steering)) {
    const auto sequence = py::reinterpret_borrow<py::sequence>(steering);
    if (sequence.size() != static_cast<std::size_t>(rows)) {
      throw py::value_error("steering has " + std::to_string(sequence.size()) + " entries, want " +
                            std::to_string(rows) + ", one a row of residual");
    }
    for (std::int64_t row = 0; row < rows; ++row) {
      const py::object item = sequence[static_cast<std::size_t>(row)];
      if (!item.is_none() && !py::isinstance<Steering>(item)) {
        throw py::value_error("steering holds a " + std::string(Py_TYPE(item.ptr())->tp_name) +
                              ", want a Steering or None for each row");
      }
      each.push_back(item.is_none() ? nullptr : &initialised<const Steering>(item, "Steering"));
      kept.push_back(item);
    }
  } else {
    throw py::value_error("steering is a " + std::string(Py_TYPE(steering.ptr())->tp_name) +
                          ", want a Steering, a sequence with one or None for each row, or None");
  }
  bool first = true;
  for (const Steering* const one : each) {
    if (one == nullptr) continue;
    if (one->width() != width) {
      throw py::value_error("steering has width " + std::to_string(one->width()) + ", want " +
                            std::to_string(width) + ", the width of residual");
    }
    if (first) weights = one->dtype();
    first = false;
    if (one->dtype() != weights) {
      throw py::value_error("steering mixes weights of " + std::string(name_of(weights)) + " and " +
                            name_of(one->dtype()) + ", want one dtype");
    }
  }
  if (weights != DType::f32 && weights != stream) {
    throw py::value_error("steering has weights of " + std::string(name_of(weights)) +
                          ", want float32 or " + name_of(stream) + ", the dtype of residual");
  }
  return each;
}

std::optional<TensorArgument> optional_tensor(const char* name, py::handle object) {
  if (object.is_none()) return std::nullopt;
  return std::optional<TensorArgument>(std::in_place, name, object);
}

void steer_step(py::handle residual_object, py::handle delta_object, py::handle steering_object,
                py::handle norm_weight_object, py::handle out_object, py::handle norm_eps,
                py::handle norm_plus_one, py::handle mask_object) {
  const float eps = positive("norm_eps", plain<double>("norm_eps", norm_eps, "a number"));
  const bool plus_one = plain<bool>("norm_plus_one", norm_plus_one, "True or False");
  TensorArgument residual("residual", residual_object);
  residual.want_dtype({DType::f32, DType::bf16, DType::f16});
  residual.want_shape({-1, -1}, "[rows, width]");
  const std::int64_t rows = residual.size(0), width = residual.size(1);
  if (width < 1) residual.fail("has width 0, want at least 1");
  residual.want_rows();
  residual.want_writable();
  const DType stream = residual.dtype();

  auto delta = optional_tensor("delta", delta_object);
  auto norm_weight = optional_tensor("norm_weight", norm_weight_object);
  auto out = optional_tensor("out", out_object);
  auto mask = optional_tensor("mask", mask_object);
  if (norm_weight.has_value() != out.has_value()) {
    throw py::value_error(out ? "norm_weight is None although out is given, want both or neither"
                              : "out is None although norm_weight is given, want both or neither");
  }
  if (delta) {
    delta->want_dtype({stream});
    delta->want_shape({rows, width}, "the shape of residual");
    delta->want_rows();
    if (delta->overlaps(residual)) delta->fail("shares memory with residual, want its own");
  }
  if (mask) {
    if (steering_object.is_none()) mask->fail("is given although steering is None, want None");
    mask->want_bool();
    mask->want_shape({rows}, "[rows]");
  }
  if (out) {
    norm_weight->want_dtype({stream, DType::f32});
    norm_weight->want_shape({width}, "[width]");
    norm_weight->want_rows();
    out->want_dtype({stream});
    out->want_shape({rows, width}, "the shape of residual");
    out->want_rows();
    out->want_writable();
    if (norm_weight->overlaps(residual)) {
      norm_weight->fail("shares memory with residual, want its own");
    }
    for (const auto* other : {&residual, &*norm_weight, delta ? &*delta : nullptr}) {
      if (other != nullptr && out->overlaps(*other)) {
        out->fail("shares memory with " + other->name() + ", want its own");
      }
    }
  }
  DType weights = DType::f32;
  std::vector<py::object> kept;
  std::vector<const Steering*> steerings =
      row_steerings(steering_object, rows, width, stream, weights, kept);
  for (const auto* tensor :
       {&residual, delta ? &*delta : nullptr, norm_weight ? &*norm_weight : nullptr,
        out ? &*out : nullptr, mask ? &*mask : nullptr}) {
    if (tensor != nullptr) tensor->check_unmoved();  // from here on no code of Python's runs
  }
  if (mask) {
    const auto* const flags = static_cast<const unsigned char*>(mask->data());
    for (std::int64_t row = 0; row < rows; ++row) {
      if (flags[row * mask->stride(0)] == 0) steerings[static_cast<std::size_t>(row)] = nullptr;
    }
  }

  cpu::StepArguments step;
  step.rows = rows;
  step.width = width;
  step.residual = residual.data();
  step.residual_stride = residual.stride(0);
  if (delta) {
    step.delta = delta->data();
    step.delta_stride = delta->stride(0);
  }
  if (!steerings.empty()) step.steerings = steerings.data();
  if (out) {
    step.out = out->data();
    step.out_stride = out->stride(0);
    step.norm_weight = norm_weight->data();
    step.norm_dtype = norm_weight->dtype();
    step.norm_eps = eps;
    step.norm_plus_one = plus_one;
  }
  const cpu::StepKernel kernel = cpu::step_kernel(cpu::current_isa(), stream, weights);
  thread_local cpu::Workspace workspace;
  if (rows * width >= kReleaseLockFrom) {
    const py::gil_scoped_release unlocked;
    kernel(step, workspace);
  } else {
    kernel(step, workspace);
  }
}

cpu::Streams streams_from(py::handle streams_object, py::handle ahead_object,
                          py::handle threads_object) {
  const std::int64_t streams = whole("streams", streams_object);
  const std::int64_t ahead = whole("ahead", ahead_object);
  const std::int64_t threads = whole("threads", threads_object);
  if (streams != 1 && streams != 2 && streams != 4 && streams != 8) {
    throw py::value_error("streams is " + std::to_string(streams) + ", want 1, 2, 4 or 8");
  }
  if (ahead < 0 || ahead > (1 << 20)) {
    throw py::value_error("ahead is " + std::to_string(ahead) + ", want 0 to 1048576 bytes");
  }
  if (threads < 1 || threads > cpu::physical_cores()) {
    throw py::value_error("threads is " + std::to_string(threads) + ", want 1 to " +
                          std::to_string(cpu::physical_cores()) + ", the cores there are");
  }
  return {static_cast<int>(streams), ahead, false, static_cast<int>(threads)};
}

// Bytes of a float32 vector that begins at a cache line and is of whole units.
std::int64_t stream_bytes(TensorArgument& tensor) {
  tensor.want_dtype({DType::f32});
  tensor.want_shape({-1}, "[numbers]");
  tensor.want_rows();
  const std::int64_t bytes = tensor.numel() * 4;
  if (bytes == 0 || bytes % cpu::kStreamUnit != 0) {
    tensor.fail("has " + std::to_string(bytes) + " bytes, want a multiple of " +
                std::to_string(cpu::kStreamUnit));
  }
  if (reinterpret_cast<std::uintptr_t>(tensor.data()) % 64 != 0) {
    tensor.fail("begins inside a cache line, want a multiple of 64 bytes");
  }
  return bytes;
}

std::uint64_t read_memory(py::handle memory_object, py::handle streams, py::handle ahead,
                          py::handle threads) {
  TensorArgument memory("memory", memory_object);
  const std::int64_t bytes = stream_bytes(memory);
  const cpu::Streams how = streams_from(streams, ahead, threads);
  memory.want_storage();
  memory.check_unmoved();
  const py::gil_scoped_release unlocked;
  return cpu::read_streams(cpu::current_isa(), memory.data(), bytes, how);
}

void copy_memory(py::handle target_object, py::handle source_object, py::handle streams,
                 py::handle ahead, py::handle past_caches, py::handle threads) {
  TensorArgument target("target", target_object), source("source", source_object);
  const std::int64_t bytes = stream_bytes(source);
  if (stream_bytes(target) != bytes) target.want_shape({source.size(0)}, "the shape of source");
  target.want_writable();
  if (target.overlaps(source)) target.fail("shares memory with source, want its own");
  cpu::Streams how = streams_from(streams, ahead, threads);
  how.past_caches = plain<bool>("past_caches", past_caches, "True or False");
  for (const TensorArgument* tensor : {&target, &source}) tensor->want_storage();
  for (const TensorArgument* tensor : {&target, &source}) tensor->check_unmoved();
  const py::gil_scoped_release unlocked;
  cpu::copy_streams(cpu::current_isa(), target.data(), source.data(), bytes, how);
}

py::dict build_info() {
  const auto names = [](const std::vector<cpu::Isa>& isas) {
    py::list list;
    for (const cpu::Isa isa : isas) list.append(cpu::name_of(isa));
    return list;
  };
  py::dict info;
  info["version"] = DIVE_VERSION;
#if defined(__clang__)
  info["compiler"] = "clang " __clang_version__;
#elif defined(__GNUC__)
  info["compiler"] = "gcc " __VERSION__;
#else
  info["compiler"] = "unknown";
#endif
  info["build_type"] = DIVE_BUILD_TYPE;
  info["isa_compiled"] = names(cpu::compiled_isas());
  info["isa_usable"] = names(cpu::usable_isas());
  info["isa"] = cpu::name_of(cpu::current_isa());
  py::list archs;
#ifdef DIVE_CUDA
  std::istringstream list(DIVE_CUDA_ARCHS);
  for (std::string arch; std::getline(list, arch, ',');) archs.append(arch);
  info["cuda"] = true;
#else
  info["cuda"] = false;
#endif
  info["cuda_archs"] = archs;
  return info;
}

}  // namespace
}  // namespace dive

PYBIND11_MODULE(DIVE_MODULE_NAME, module) {
  using namespace dive;
  module.doc() = "Compiled kernels of dive; dive.decode.native is the door to them.";

  // local: the tests load a second build of this module beside it
  py::class_<Steering>(module, "Steering", py::module_local(),
                       "One layer's steering weights, copied and packed.")
      .def(py::init(&pack_steering), py::arg("down"), py::arg("down_bias"), py::arg("up"),
           py::arg("static"), py::arg("scale"), py::kw_only(), py::arg("activation") = "silu",
           py::arg("norm_preserving") = false, py::arg("eps") = 1e-6)
      .def_property_readonly("rank", method(&Steering::rank, "Steering"))
      .def_property_readonly("width", method(&Steering::width, "Steering"))
      .def_property_readonly(
          "dtype",
          [](py::handle self) {
            return name_of(initialised<const Steering>(self, "Steering").dtype());
          })
      .def_property_readonly("nbytes", method(&Steering::bytes, "Steering"));

  module.def("steer_step", &steer_step, py::arg("residual"), py::arg("delta") = py::none(),
             py::arg("steering") = py::none(), py::arg("norm_weight") = py::none(),
             py::arg("out") = py::none(), py::kw_only(), py::arg("norm_eps") = 1e-6,
             py::arg("norm_plus_one") = false, py::arg("mask") = py::none());
  bind_engine(module);
  module.def("read_memory", &read_memory, py::arg("memory"), py::kw_only(), py::arg("streams") = 1,
             py::arg("ahead") = 0, py::arg("threads") = 1);
  module.def("copy_memory", &copy_memory, py::arg("target"), py::arg("source"), py::kw_only(),
             py::arg("streams") = 1, py::arg("ahead") = 0, py::arg("past_caches") = false,
             py::arg("threads") = 1);
#ifdef DIVE_HOST_CUDA
  cuda::host::bind_host_cuda(module);
#endif
  module.def("build_info", &build_info);
  module.def("use_isa", &cpu::use_isa, py::arg("name"));
}
