// CUDA's runtime as the backend uses it: memory that frees itself, checked calls, launches, graphs.
#pragma once

#include <cstddef>
#include <memory>
#include <mutex>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>

#include "cuda/device.h"

namespace dive::cuda {

inline void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // it is reported here, and not at the next call
  throw std::runtime_error(std::string("CUDA: ") + what + ": " + cudaGetErrorString(status));
}

// Device memory of `count` T, not initialised.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  Buffer(std::size_t count, const std::string& what) { grow(count, what); }

  // At least `count`; the contents are lost where it had to grow. `what` names the purpose in the
  // message where memory is exhausted.
  void grow(std::size_t count, const std::string& what) {
    if (count <= count_) return;
    data_.reset();
    count_ = 0;
    void* data = nullptr;
    const cudaError_t status = cudaMalloc(&data, count * sizeof(T));
    if (status == cudaErrorMemoryAllocation) {
      cudaGetLastError();
      throw std::runtime_error("out of memory: " + what + " needs " +
                               std::to_string(count * sizeof(T) >> 20) + " MiB on the GPU");
    }
    check(status, "cudaMalloc");  // an earlier kernel's fault is reported at the next call
    data_.reset(static_cast<T*>(data));
    count_ = count;
  }
  T* data() const { return data_.get(); }
  std::size_t size() const { return count_; }

 private:
  struct Free {
    void operator()(T* data) const { cudaFree(data); }
  };
  std::unique_ptr<T, Free> data_;
  std::size_t count_ = 0;
};

// Makes a device current, and the former one again at the end.
class OnDevice {
 public:
  explicit OnDevice(int device) {
    check(cudaGetDevice(&before_), "cudaGetDevice");
    if (before_ != device) check(cudaSetDevice(device), "cudaSetDevice");
    changed_ = before_ != device;
  }
  ~OnDevice() {
    if (changed_) cudaSetDevice(before_);
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

struct Shape {
  dim3 grid;
  unsigned threads = 256;
  std::size_t shared = 0;
  unsigned cluster = 1;  // blocks of a cluster, along x
};

// A stream, and whether its kernels may overlap the end of the one before (wait_for_previous).
struct Queue {
  cudaStream_t stream = nullptr;
  bool overlap = false;
};

#ifndef DIVE_HOST_CUDA
// A multiprocessor cannot change how it divides its memory between cache and shared while blocks
// are on it: with one division for all kernels, the next one's blocks can start next to this one's.
inline void divide_memory(const void* kernel) {
  static std::mutex busy;
  static std::set<std::pair<int, const void*>> done;
  int device = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  const std::lock_guard<std::mutex> lock(busy);
  if (!done.insert({device, kernel}).second) return;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, 50),
        "shared memory of a kernel");
}

template <class... P, class... A>
void launch(const Queue& queue, const Shape& shape, void (*kernel)(P...), A&&... arguments) {
  divide_memory(reinterpret_cast<const void*>(kernel));
  cudaLaunchAttribute attributes[2];
  unsigned count = 0;
  if (queue.overlap) {
    attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[count++].val.programmaticStreamSerializationAllowed = 1;
  }
  if (shape.cluster > 1) {
    attributes[count].id = cudaLaunchAttributeClusterDimension;
    attributes[count].val.clusterDim.x = shape.cluster;
    attributes[count].val.clusterDim.y = 1;
    attributes[count++].val.clusterDim.z = 1;
  }
  cudaLaunchConfig_t config{};
  config.gridDim = shape.grid;
  config.blockDim = dim3(shape.threads);
  config.dynamicSmemBytes = shape.shared;
  config.stream = queue.stream;
  config.attrs = attributes;
  config.numAttrs = count;
  check(cudaLaunchKernelEx(&config, kernel, std::forward<A>(arguments)...), "a kernel's launch");
}
#endif

// Orders all later work on `to` after the work that is on `from`.
inline void order(cudaStream_t from, cudaStream_t to) {
  cudaEvent_t event = nullptr;
  check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "an event");
  cudaError_t status = cudaEventRecord(event, from);
  if (status == cudaSuccess) status = cudaStreamWaitEvent(to, event, 0);
  cudaEventDestroy(event);
  check(status, "order of two streams");
}

// The kernels between `begin` and `end` of a stream, to be run again at once.
class Graph {
 public:
  Graph() = default;
  Graph(Graph&& other) noexcept : graph_(std::exchange(other.graph_, nullptr)) {}
  Graph& operator=(Graph&& other) noexcept {
    std::swap(graph_, other.graph_);
    return *this;
  }
  ~Graph() {
    if (graph_ != nullptr) cudaGraphExecDestroy(graph_);
  }

  template <class F>
  static Graph record(cudaStream_t stream, const F& kernels) {
    check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "begin of a capture");
    cudaGraph_t recorded = nullptr;
    try {
      kernels();
    } catch (...) {
      cudaStreamEndCapture(stream, &recorded);
      if (recorded != nullptr) cudaGraphDestroy(recorded);
      throw;
    }
    check(cudaStreamEndCapture(stream, &recorded), "end of a capture");
    Graph graph;
    const cudaError_t status = cudaGraphInstantiate(&graph.graph_, recorded, 0);
    cudaGraphDestroy(recorded);
    check(status, "cudaGraphInstantiate");
    return graph;
  }
  void run(cudaStream_t stream) const {
    check(cudaGraphLaunch(graph_, stream), "a graph's launch");
  }
  explicit operator bool() const { return graph_ != nullptr; }

 private:
  cudaGraphExec_t graph_ = nullptr;
};

}  // namespace dive::cuda

#ifdef DIVE_HOST_CUDA
#include "tests/host_cuda/launch.h"
#endif
