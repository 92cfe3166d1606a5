#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "tests/host_cuda/state.h"

using namespace dive::cuda::host;

namespace {

constexpr std::size_t kQuarantine = std::size_t{64} << 20;

// Whether all of it lies within the allocation that it begins in; other memory is not known here.
bool fits(const void* data, std::size_t bytes) {
  const auto address = reinterpret_cast<std::uintptr_t>(data);
  auto next = state().allocations.upper_bound(address);
  if (next == state().allocations.begin()) return true;
  --next;
  return address >= next->first + next->second || address + bytes <= next->first + next->second;
}

bool on_device(const void* data) {
  const auto address = reinterpret_cast<std::uintptr_t>(data);
  auto next = state().allocations.upper_bound(address);
  if (next == state().allocations.begin()) return false;
  --next;
  return address < next->first + next->second;
}

void* filled(std::size_t bytes) {
  void* data = nullptr;
  if (posix_memalign(&data, 256, bytes) != 0) return nullptr;
  std::memset(data, 0xff, bytes);
  return data;
}

}  // namespace

cudaError_t cudaMemGetInfo(std::size_t* unused, std::size_t* all) {
  *all = settings().memory;
  *unused = *all - std::min(*all, state().counts.bytes);
  return cudaSuccess;
}

cudaError_t cudaMalloc(void** data, std::size_t bytes) {
  const std::lock_guard lock(state().busy);
  *data = nullptr;
  if (interrupts_capture()) return result(cudaErrorStreamCaptureUnsupported);
  if (bytes == 0) return cudaSuccess;
  State& s = state();
  if (bytes > settings().memory - std::min(settings().memory, s.counts.bytes)) {
    return result(cudaErrorMemoryAllocation);
  }
  *data = filled(bytes);
  if (*data == nullptr) return result(cudaErrorMemoryAllocation);
  s.allocations[reinterpret_cast<std::uintptr_t>(*data)] = bytes;
  ++s.counts.allocations;
  s.counts.bytes += bytes;
  return cudaSuccess;
}

cudaError_t cudaFree(void* data) {
  const std::lock_guard lock(state().busy);
  if (data == nullptr) return cudaSuccess;
  if (interrupts_capture()) return result(cudaErrorStreamCaptureUnsupported);
  State& s = state();
  const auto found = s.allocations.find(reinterpret_cast<std::uintptr_t>(data));
  if (found == s.allocations.end()) return result(cudaErrorInvalidValue);
  const std::size_t bytes = found->second;
  s.allocations.erase(found);
  --s.counts.allocations;
  s.counts.bytes -= bytes;
#ifdef __SANITIZE_ADDRESS__
  std::free(data);  // its own quarantine sees every use
#else
  std::memset(data, 0xff, bytes);
  s.freed.emplace_back(data, bytes);
  s.freed_bytes += bytes;
  while (s.freed_bytes > kQuarantine) {
    std::free(s.freed.front().first);
    s.freed_bytes -= s.freed.front().second;
    s.freed.pop_front();
  }
#endif
  return cudaSuccess;
}

cudaError_t cudaMallocHost(void** data, std::size_t bytes) {
  if (interrupts_capture()) return result(cudaErrorStreamCaptureUnsupported);
  *data = filled(bytes);
  return *data != nullptr ? cudaSuccess : result(cudaErrorMemoryAllocation);
}

cudaError_t cudaFreeHost(void* data) {
  std::free(data);
  return cudaSuccess;
}

cudaError_t cudaMemcpy2DAsync(void* to, std::size_t to_pitch, const void* from,
                              std::size_t from_pitch, std::size_t width, std::size_t height,
                              cudaMemcpyKind kind, cudaStream_t stream) {
  const std::lock_guard lock(state().busy);
  if (width == 0 || height == 0) return cudaSuccess;
  const bool to_host = kind == cudaMemcpyHostToHost || kind == cudaMemcpyDeviceToHost;
  const bool from_host = kind == cudaMemcpyHostToHost || kind == cudaMemcpyHostToDevice;
  if (to == nullptr || from == nullptr || to_pitch < width || from_pitch < width ||
      !fits(to, (height - 1) * to_pitch + width) ||
      !fits(from, (height - 1) * from_pitch + width) ||
      (kind != cudaMemcpyDefault &&
       ((to_host && on_device(to)) || (from_host && on_device(from))))) {
    return result(cudaErrorInvalidValue);
  }
  ++state().counts.copies;
  const Work copy = [=] {
    for (std::size_t row = 0; row < height; ++row) {
      std::memmove(static_cast<unsigned char*>(to) + row * to_pitch,
                   static_cast<const unsigned char*>(from) + row * from_pitch, width);
    }
  };
  return run_or_record(stream, copy);
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  return cudaMemcpy2DAsync(to, bytes, from, bytes, bytes, 1, kind, stream);
}

cudaError_t cudaMemcpy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind) {
  if (interrupts_capture()) return result(cudaErrorStreamCaptureImplicit);
  return cudaMemcpyAsync(to, from, bytes, kind, nullptr);
}

cudaError_t cudaMemsetAsync(void* to, int value, std::size_t bytes, cudaStream_t stream) {
  const std::lock_guard lock(state().busy);
  if (bytes == 0) return cudaSuccess;
  if (to == nullptr || !fits(to, bytes)) return result(cudaErrorInvalidValue);
  const Work set = [=] { std::memset(to, value, bytes); };
  return run_or_record(stream, set);
}
