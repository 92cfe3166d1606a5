#include "tests/bindings.h"

#include <pybind11/stl.h>

#include <string>

#include "tests/host_cuda/runtime_api.h"

namespace py = pybind11;

namespace dive::cuda::host {
namespace {

Order order_from(const std::string& name) {
  if (name == "forward") return Order::forward;
  if (name == "backward") return Order::backward;
  if (name == "shuffled") return Order::shuffled;
  throw py::value_error("order is '" + name + "', want forward, backward or shuffled");
}

// Sets all of them: what is not given is as at first.
void set(const std::string& order, std::uint32_t seed, int capability, int multiprocessors,
         std::size_t memory, unsigned ahead) {
  settings() = {order_from(order), seed, capability, multiprocessors, memory, ahead};
}

py::dict count() {
  const Counts now = counts();
  py::dict dict;
  dict["allocations"] = now.allocations;
  dict["bytes"] = now.bytes;
  dict["launches"] = now.launches;
  dict["graphs"] = now.graphs;
  dict["copies"] = now.copies;
  return dict;
}

}  // namespace
}  // namespace dive::cuda::host

void dive::bind_tests(py::module_& module) {
  using namespace dive::cuda::host;
  const Settings first;
  module.def("host_settings", &set, py::kw_only(), py::arg("order") = "forward",
             py::arg("seed") = first.seed, py::arg("capability") = first.capability,
             py::arg("multiprocessors") = first.multiprocessors, py::arg("memory") = first.memory,
             py::arg("ahead") = first.ahead);
  module.def("host_counts", &count);
  module.def("host_kernels", &kernels);
}
