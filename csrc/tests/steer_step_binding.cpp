// The step kernel of a CPU by itself, for tests and benchmarks: `steer_step`, in a build of the
// module that has it besides all of dive._C. tests/helpers/step_kernel.py is its caller.
#include <pybind11/pybind11.h>

#include <optional>
#include <vector>

#include "cpu/kernels.h"
#include "python/arguments.h"
#include "python/tensor_argument.h"
#include "tests/bindings.h"

namespace py = pybind11;

namespace dive {
namespace {

using cpu::PackedSteering;

TensorArgument rows_of(const char* name, py::handle object, DType dtype, std::int64_t rows,
                       std::int64_t width) {
  TensorArgument tensor(name, object);
  tensor.want_dtype({dtype});
  tensor.want_shape({rows, width}, "the shape of residual");
  tensor.want_rows();
  return tensor;
}

// steering: one per row, or None for a row that is not steered.
void steer_step(py::handle residual_object, py::handle delta_object, const py::list& steering,
                py::handle norm_weight_object, py::handle out_object, float norm_eps,
                bool norm_plus_one) {
  TensorArgument residual("residual", residual_object);
  residual.want_dtype({DType::f32, DType::bf16});
  residual.want_shape({-1, -1}, "[rows, width]");
  residual.want_rows();
  cpu::StepArguments step;
  step.rows = residual.size(0);
  step.width = residual.size(1);
  step.residual = residual.data();
  step.residual_stride = residual.stride(0);
  const DType stream = residual.dtype();

  std::optional<TensorArgument> delta, norm_weight, out;  // held to the end of the step
  if (!delta_object.is_none()) {
    delta = rows_of("delta", delta_object, stream, step.rows, step.width);
    step.delta = delta->data();
    step.delta_stride = delta->stride(0);
  }
  if (!norm_weight_object.is_none()) {
    norm_weight.emplace("norm_weight", norm_weight_object);
    norm_weight->want_dtype({stream, DType::f32});
    norm_weight->want_shape({step.width}, "[width]");
    norm_weight->want_rows();
    out = rows_of("out", out_object, stream, step.rows, step.width);
    step.out = out->data();
    step.out_stride = out->stride(0);
    step.norm_weight = norm_weight->data();
    step.norm_dtype = norm_weight->dtype();
    step.norm_eps = norm_eps;
    step.norm_plus_one = norm_plus_one;
  }
  std::vector<const PackedSteering*> each(static_cast<std::size_t>(step.rows), nullptr);
  if (steering.size() != each.size())
    throw py::value_error("steering has another length, want one entry per row");
  for (std::size_t row = 0; row < each.size(); ++row) {
    const py::handle item = PyList_GET_ITEM(steering.ptr(), static_cast<Py_ssize_t>(row));
    if (item.is_none()) continue;
    const auto& one = initialised<const Steering>(item, "Steering");
    if (one.width() != step.width || one.dtype() != stream) {
      throw py::value_error("steering is of another width or dtype");
    }
    each[row] = static_cast<const PackedSteering*>(&one);
  }
  step.steerings = each.data();
  thread_local cpu::Workspace workspace;
  cpu::kernels_of(cpu::current_isa(), stream).step(step, workspace);
}

}  // namespace

void bind_tests(py::module_& module) {
  module.def("steer_step", &steer_step, py::arg("residual"), py::arg("delta"), py::arg("steering"),
             py::arg("norm_weight"), py::arg("out"), py::arg("norm_eps"), py::arg("norm_plus_one"));
}

}  // namespace dive
