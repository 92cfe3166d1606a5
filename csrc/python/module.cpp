// The Python module dive._C. dive/_C.pyi has the signatures with their types.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <sstream>
#include <string>
#include <vector>

#include "cpu/cores.h"
#include "cpu/isa.h"
#include "cpu/streams.h"
#include "python/arguments.h"
#include "python/engine.h"
#include "python/steering.h"
#include "python/tensor_argument.h"
#ifdef DIVE_TEST_BINDINGS
#include "tests/bindings.h"
#endif

#ifndef DIVE_MODULE_NAME
#define DIVE_MODULE_NAME _C
#endif

namespace py = pybind11;

namespace dive {
namespace {

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

  bind_steering(module);
  bind_engine(module);
  module.def("read_memory", &read_memory, py::arg("memory"), py::kw_only(), py::arg("streams") = 1,
             py::arg("ahead") = 0, py::arg("threads") = 1);
  module.def("copy_memory", &copy_memory, py::arg("target"), py::arg("source"), py::kw_only(),
             py::arg("streams") = 1, py::arg("ahead") = 0, py::arg("past_caches") = false,
             py::arg("threads") = 1);
#ifdef DIVE_TEST_BINDINGS
  bind_tests(module);
#endif
  module.def("build_info", &build_info);
  module.def("use_isa", &cpu::use_isa, py::arg("name"));
}
