// Whether the kernels can run a model, as their loads of 16 bytes and their registers require.
#include <cstdint>
#include <utility>

#include "cuda/attention.h"
#include "cuda/backend.h"
#include "cuda/embed.h"
#include "cuda/runtime.h"

namespace dive::cuda {
namespace {

// The reason why a matrix cannot be read; empty where it can.
std::string misfit(const std::string& name, const LinearSpec& linear, DType dtype) {
  const auto address = reinterpret_cast<std::uintptr_t>(linear.weight);
  if (linear.columns % 8 != 0 || linear.stride * size_of(dtype) % 16 != 0 || address % 16 != 0) {
    return name + " has rows of " + std::to_string(linear.columns) +
           " numbers that do not start at multiples of 16 bytes";
  }
  return "";
}

}  // namespace

std::string unsupported(const DecoderSpec& spec, int device) {
  int devices = 0, major = 0;
  const cudaError_t status = cudaGetDeviceCount(&devices);
  if (status != cudaSuccess || device >= devices) {
    cudaGetLastError();
    const std::string why =
        status == cudaSuccess ? "" : std::string(": ") + cudaGetErrorString(status);
    return "CUDA finds no device " + std::to_string(device) + why;
  }
  if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) != cudaSuccess ||
      major < 8) {
    return "its GPU is older than compute capability 8.0";
  }
  const OnDevice here(device);
  if (!compiled_for_current_device()) {
    return "dive._C was built without kernels for its GPU; dive._C.build_info() names those it has";
  }
  if (spec.head_width % 8 != 0 || spec.head_width > kMaxHeadWidth) {
    return "its heads have " + std::to_string(spec.head_width) +
           " numbers, want a multiple of 8 on a GPU, up to " + std::to_string(kMaxHeadWidth);
  }
  std::string reason = misfit("the head", spec.head, spec.dtype);
  for (std::size_t l = 0; l < spec.layers.size() && reason.empty(); ++l) {
    const LayerSpec& layer = spec.layers[l];
    const std::string at = "layers." + std::to_string(l) + ".";
    const std::pair<const char*, const LinearSpec*> linears[] = {
        {"query", &layer.query},   {"key", &layer.key},   {"value", &layer.value},
        {"output", &layer.output}, {"gate", &layer.gate}, {"up", &layer.up},
        {"down", &layer.down}};
    for (const auto& [name, linear] : linears) {
      if (reason.empty()) reason = misfit(at + name, *linear, spec.dtype);
    }
  }
  return reason;
}

}  // namespace dive::cuda
