#include "python/steering.h"

#include <cmath>
#include <memory>
#include <string>

#include "../steering.h"
#include "cpu/steering.h"
#include "python/arguments.h"
#include "python/decoder_reader.h"
#include "python/tensor_argument.h"
#ifdef DIVE_CUDA
#include "cuda/backend.h"
#endif

namespace py = pybind11;

namespace dive {
namespace {

Activation activation_from(const std::string& name) {
  if (name == "silu") return Activation::silu;
  if (name == "gelu") return Activation::gelu;
  if (name == "tanh") return Activation::tanh;
  if (name == "identity") return Activation::identity;
  throw py::value_error("activation is '" + name + "', want silu, gelu, tanh or identity");
}

MatrixView matrix(const TensorArgument& tensor) {
  return {tensor.data(), tensor.stride(0), tensor.stride(1)};
}

// A GPU copies whole ranges of memory: `strides` are those of a tensor without gaps.
void want_no_gaps(const TensorArgument& tensor, std::initializer_list<std::int64_t> strides,
                  const char* wanted) {
  std::size_t i = 0;
  for (const std::int64_t stride : strides) {
    if (tensor.numel() > 0 && tensor.size(i) > 1 && tensor.stride(i) != stride) tensor.fail(wanted);
    ++i;
  }
}

std::unique_ptr<Steering> copy_to([[maybe_unused]] dlpack::Device device,
                                  const SteeringSource& source,
                                  [[maybe_unused]] std::int64_t stream) {
#ifdef DIVE_CUDA
  if (device.type != dlpack::kCpu) {
    return cuda::make_steering(source, device.id, reinterpret_cast<void*>(stream));
  }
#endif
  return std::make_unique<cpu::PackedSteering>(source);
}

std::unique_ptr<Steering> make_steering(py::handle down, py::handle down_bias, py::handle up,
                                        py::handle fixed, py::handle scale_object,
                                        py::handle activation, py::handle norm_preserving,
                                        py::handle eps, py::handle device_object,
                                        py::handle stream_object) {
  SteeringSource source;
  const auto scale = plain<double>("scale", scale_object, "a number");
  if (!std::isfinite(scale)) {
    throw py::value_error("scale is " + std::to_string(scale) + ", want a finite number");
  }
  source.scale = static_cast<float>(scale);
  source.eps = positive("eps", plain<double>("eps", eps, "a number"));
  source.activation = activation_from(plain<std::string>("activation", activation, "a text"));
  source.norm_preserving = plain<bool>("norm_preserving", norm_preserving, "True or False");
  const std::int64_t stream = whole("stream", stream_object);
  const dlpack::Device device = device_from(plain<std::string>("device", device_object, "a text"));
  const bool on_gpu = device.type != dlpack::kCpu;
  const dlpack::Device tensors = tensors_of(device);
  TensorArgument a("down", down, tensors), bias("down_bias", down_bias, tensors);
  TensorArgument b("up", up, tensors), v("static", fixed, tensors);
  if (on_gpu) {
    a.want_dtype({DType::f32, DType::bf16, DType::f16});
  } else {
    a.want_dtype({DType::f32, DType::bf16});
  }
  b.want_dtype({a.dtype()});
  for (TensorArgument* tensor : {&bias, &v}) tensor->want_dtype({DType::f32});
  a.want_shape({-1, -1}, "[rank, width]");
  source.rank = a.size(0);
  source.width = a.size(1);
  if (source.rank > kMaxRank || source.width < 1) {
    a.fail("has shape [" + std::to_string(source.rank) + ", " + std::to_string(source.width) +
           "], want a rank up to " + std::to_string(kMaxRank) + " and a width from 1");
  }
  bias.want_shape({source.rank}, "[rank]");
  b.want_shape({source.width, source.rank}, "[width, rank]");
  v.want_shape({source.width}, "[width]");
  for (const TensorArgument* tensor : {&bias, &v}) tensor->want_rows();
  if (on_gpu) {
    want_no_gaps(a, {source.width, 1}, "has gaps, want rows one after another (.contiguous())");
    want_no_gaps(b, {1, source.width},
                 "has gaps, want columns one after another (.t().contiguous().t())");
  }
  for (TensorArgument* tensor : {&a, &bias, &b, &v}) tensor->want_storage();
  for (TensorArgument* tensor : {&a, &bias, &b, &v}) tensor->check_unmoved();
  source.dtype = a.dtype();
  source.down = matrix(a);
  source.down_bias = static_cast<const float*>(bias.data());
  source.up = matrix(b);
  source.fixed = static_cast<const float*>(v.data());
  return copy_to(device, source, stream);
}

}  // namespace

void bind_steering(py::module_& module) {
  // local: the tests load a second build of this module in the same process
  py::class_<Steering>(module, "Steering", py::module_local(),
                       "One layer's steering weights, copied for one device.")
      .def(py::init(&make_steering), py::arg("down"), py::arg("down_bias"), py::arg("up"),
           py::arg("static"), py::arg("scale"), py::kw_only(), py::arg("activation") = "silu",
           py::arg("norm_preserving") = false, py::arg("eps") = 1e-6, py::arg("device") = "cpu",
           py::arg("stream") = 0)
      .def_property_readonly("rank", method(&Steering::rank, "Steering"))
      .def_property_readonly("width", method(&Steering::width, "Steering"))
      .def_property_readonly(
          "dtype",
          [](py::handle self) {
            return name_of(initialised<const Steering>(self, "Steering").dtype());
          })
      .def_property_readonly("nbytes", method(&Steering::bytes, "Steering"));
}

}  // namespace dive
