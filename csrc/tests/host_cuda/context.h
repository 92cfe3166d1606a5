// Stacks, and the switch from one to another.
#pragma once

#include <cstddef>

#if defined(__SANITIZE_ADDRESS__)
#define DIVE_HOST_CUDA_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define DIVE_HOST_CUDA_ASAN 1
#endif
#endif

#ifdef DIVE_HOST_CUDA_ASAN
#include <pthread.h>
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if !defined(__x86_64__) && !defined(__aarch64__)
#include <ucontext.h>
#endif

namespace dive::cuda::host {

#ifdef DIVE_HOST_CUDA_ASAN
constexpr std::size_t kStackBytes = std::size_t{256} << 10;
#else
constexpr std::size_t kStackBytes = std::size_t{64} << 10;
#endif

// Memory with a page below that nobody may touch. Stacks that were used are used again.
struct Stack {
  Stack();
  ~Stack();
  Stack(const Stack&) = delete;
  unsigned char* memory;  // kStackBytes
};

// A place to switch to: `entry` on that stack.
void* prepare(Stack& stack, void (*entry)());
// Rests here, where `*from` will then say, and goes on at `to`.
void switch_stacks(void** from, void* to);

}  // namespace dive::cuda::host
