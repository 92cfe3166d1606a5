// What the calls of csrc/tests/host_cuda/runtime_api.h share.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <mutex>
#include <utility>
#include <variant>

#include "tests/host_cuda/runtime_api.h"

namespace dive::cuda::host {

using Work = std::function<void()>;
using Operations = std::vector<std::variant<Launch, Work>>;

// What a kernel may have.
struct Limits {
  int shared = 48 << 10;
  int cluster = 8;
};

struct State {
  std::recursive_mutex busy;  // the fibers of one launch at a time
  cudaError_t last = cudaSuccess;
  Counts counts;
  std::map<const void*, std::size_t> kernels;  // launches of each
  std::map<std::uintptr_t, std::size_t> allocations;
  std::deque<std::pair<void*, std::size_t>> freed;  // kept for a while, so that its use is seen
  std::size_t freed_bytes = 0;
  std::map<const void*, Limits> limits;
  std::vector<cudaStream_t> capturing;
};
State& state();

// Remembers an error for cudaGetLastError.
cudaError_t result(cudaError_t status);

int max_shared();

// Whether a stream captures, whose capture the call that asks has spoilt.
bool interrupts_capture();

// Runs the operation, or records it where the stream captures.
cudaError_t run_or_record(cudaStream_t stream, std::variant<Launch, Work> operation);

}  // namespace dive::cuda::host
