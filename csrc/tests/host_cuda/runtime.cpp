#include "tests/host_cuda/runtime_api.h"

#include <algorithm>

#include "tests/host_cuda/kernel_name.h"
#include "tests/host_cuda/state.h"

using namespace dive::cuda::host;

struct CUstream_st {
  unsigned flags = 0;
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  Operations recorded;
};
struct CUgraph_st {
  Operations operations;
};
struct CUgraphExec_st {
  Operations operations;
};
struct CUevent_st {};

namespace {

// Kernels that may overlap begin before what they wait for has run, some ahead of it.
void replay(const Operations& operations) {
  std::vector<std::unique_ptr<Running>> begun(operations.size());
  for (std::size_t i = 0; i < operations.size(); ++i) {
    if (const Work* const work = std::get_if<Work>(&operations[i])) {
      (*work)();
      continue;
    }
    for (std::size_t j = i; j < operations.size() && j <= i + settings().ahead; ++j) {
      const Launch* const launch = std::get_if<Launch>(&operations[j]);
      if (launch == nullptr || (j > i && !launch->overlap)) break;
      if (begun[j] != nullptr) continue;
      ++state().counts.launches;
      ++state().kernels[launch->kernel];
      begun[j] = std::make_unique<Running>(*launch);
      begun[j]->prologue();
    }
    begun[i]->finish();
    begun[i].reset();
  }
}

}  // namespace

namespace dive::cuda::host {

State& state() {
  static auto* const all = new State;  // never freed: engines may be last
  return *all;
}

cudaError_t result(cudaError_t status) {
  if (status != cudaSuccess) state().last = status;
  return status;
}

int max_shared() { return settings().capability >= 90 ? 227 << 10 : 163 << 10; }

bool interrupts_capture() {
  for (const cudaStream_t stream : state().capturing) {
    stream->status = cudaStreamCaptureStatusInvalidated;
  }
  return !state().capturing.empty();
}

cudaError_t run_or_record(cudaStream_t stream, std::variant<Launch, Work> operation) {
  const std::lock_guard lock(state().busy);
  if (stream != nullptr && stream->status == cudaStreamCaptureStatusActive) {
    stream->recorded.push_back(std::move(operation));
    return cudaSuccess;
  }
  if (stream != nullptr && stream->status == cudaStreamCaptureStatusInvalidated) {
    return result(cudaErrorStreamCaptureInvalidated);
  }
  // the default stream waits for those that may block it, and so for the capture
  const auto blocking = [](cudaStream_t other) {
    return (other->flags & cudaStreamNonBlocking) == 0;
  };
  auto& capturing = state().capturing;
  if (stream == nullptr && std::any_of(capturing.begin(), capturing.end(), blocking)) {
    interrupts_capture();
    return result(cudaErrorStreamCaptureImplicit);
  }
  replay({std::move(operation)});
  return cudaSuccess;
}

Counts counts() { return state().counts; }

std::map<std::string, std::size_t> kernels() {
  const std::lock_guard lock(state().busy);
  std::map<std::string, std::size_t> named;
  for (const auto& [kernel, launches] : state().kernels) named[name_of_kernel(kernel)] += launches;
  return named;
}

cudaError_t set_attribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  const std::lock_guard lock(state().busy);
  if (value < 0) return result(cudaErrorInvalidValue);
  Limits& limits = state().limits[kernel];
  if (attribute == cudaFuncAttributeMaxDynamicSharedMemorySize) {
    if (value > max_shared()) return result(cudaErrorInvalidValue);
    limits.shared = value;
  }
  if (attribute == cudaFuncAttributeNonPortableClusterSizeAllowed) limits.cluster = value ? 16 : 8;
  return cudaSuccess;
}

cudaError_t submit(cudaStream_t stream, const Launch& launch) {
  const std::lock_guard lock(state().busy);
  const dim3 grid = launch.grid;
  const auto found = state().limits.find(launch.kernel);
  const Limits limits = found == state().limits.end() ? Limits{} : found->second;
  if (launch.threads < 1 || launch.threads > 1024 || grid.x < 1 || grid.x > 0x7fffffff ||
      grid.y < 1 || grid.y > 65535 || grid.z < 1 || grid.z > 65535 || launch.cluster < 1 ||
      launch.cluster > static_cast<unsigned>(limits.cluster) || grid.x % launch.cluster != 0) {
    return result(cudaErrorInvalidConfiguration);
  }
  if (launch.shared > static_cast<std::size_t>(std::min(limits.shared, max_shared()))) {
    return result(cudaErrorInvalidValue);
  }
  if (settings().capability < 90 && (launch.cluster > 1 || launch.overlap)) {
    return result(cudaErrorNotSupported);
  }
  return run_or_record(stream, launch);
}

}  // namespace dive::cuda::host

const char* cudaGetErrorString(cudaError_t status) {
  switch (status) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidValue: return "invalid argument";
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    case cudaErrorInvalidDevice: return "invalid device ordinal";
    case cudaErrorNoKernelImageForDevice:
      return "no kernel image is available for execution on the device";
    case cudaErrorInvalidResourceHandle: return "invalid resource handle";
    case cudaErrorNotSupported: return "operation not supported";
    case cudaErrorStreamCaptureUnsupported:
      return "operation not permitted when stream is capturing";
    case cudaErrorStreamCaptureInvalidated:
      return "operation failed due to a previous error during capture";
    case cudaErrorStreamCaptureImplicit:
      return "operation would make the legacy stream depend on a capturing blocking stream";
  }
  return "unrecognized error code";
}

cudaError_t cudaPeekAtLastError() { return state().last; }

cudaError_t cudaGetLastError() { return std::exchange(state().last, cudaSuccess); }

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
  return device == 0 ? cudaSuccess : result(cudaErrorInvalidDevice);
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (device != 0) return result(cudaErrorInvalidDevice);
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock: *value = 1024; return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = 48 << 10; return cudaSuccess;
    case cudaDevAttrMultiProcessorCount: *value = settings().multiprocessors; return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor: *value = settings().capability / 10; return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor: *value = settings().capability % 10; return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = max_shared() + (1 << 10);
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = max_shared(); return cudaSuccess;
    case cudaDevAttrClusterLaunch: *value = settings().capability >= 90; return cudaSuccess;
  }
  return result(cudaErrorInvalidValue);
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  *stream = new CUstream_st;
  (*stream)->flags = flags;
  return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  const std::lock_guard lock(state().busy);
  auto& capturing = state().capturing;
  capturing.erase(std::remove(capturing.begin(), capturing.end(), stream), capturing.end());
  delete stream;
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t) {
  return interrupts_capture() ? result(cudaErrorStreamCaptureUnsupported) : cudaSuccess;
}

cudaError_t cudaDeviceSynchronize() { return cudaStreamSynchronize(nullptr); }

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  const std::lock_guard lock(state().busy);
  if (stream == nullptr) return result(cudaErrorStreamCaptureUnsupported);
  if (stream->status != cudaStreamCaptureStatusNone) return result(cudaErrorInvalidValue);
  stream->status = cudaStreamCaptureStatusActive;
  state().capturing.push_back(stream);
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  const std::lock_guard lock(state().busy);
  *graph = nullptr;
  if (stream == nullptr || stream->status == cudaStreamCaptureStatusNone) {
    return result(cudaErrorInvalidValue);
  }
  const cudaStreamCaptureStatus status = stream->status;
  stream->status = cudaStreamCaptureStatusNone;
  Operations recorded = std::move(stream->recorded);
  stream->recorded.clear();
  auto& capturing = state().capturing;
  capturing.erase(std::find(capturing.begin(), capturing.end(), stream));
  if (status == cudaStreamCaptureStatusInvalidated) {
    return result(cudaErrorStreamCaptureInvalidated);
  }
  *graph = new CUgraph_st{std::move(recorded)};
  return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  *status = stream == nullptr ? cudaStreamCaptureStatusNone : stream->status;
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  *exec = new CUgraphExec_st{graph->operations};
  return cudaSuccess;
}

cudaError_t cudaGraphUpload(cudaGraphExec_t, cudaStream_t) { return cudaSuccess; }

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  const std::lock_guard lock(state().busy);
  if (exec == nullptr) return result(cudaErrorInvalidValue);
  if (stream != nullptr && stream->status != cudaStreamCaptureStatusNone) {
    return result(cudaErrorNotSupported);  // a graph in a graph
  }
  ++state().counts.graphs;
  replay(exec->operations);
  return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  delete exec;
  return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = new CUevent_st;
  return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) {
  return state().capturing.empty() ? cudaSuccess : result(cudaErrorNotSupported);
}

cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaStreamSynchronize(nullptr); }

cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) {
  return state().capturing.empty() ? cudaSuccess : result(cudaErrorNotSupported);
}
