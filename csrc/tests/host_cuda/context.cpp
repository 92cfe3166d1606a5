#include "tests/host_cuda/context.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <new>
#include <vector>

namespace dive::cuda::host {
namespace {

std::vector<unsigned char*>& unused_stacks() {
  static auto* const stacks = new std::vector<unsigned char*>;  // never freed: engines may be last
  return *stacks;
}

}  // namespace

Stack::Stack() {
  auto& unused = unused_stacks();
  if (!unused.empty()) {
    memory = unused.back();
    unused.pop_back();
#ifdef DIVE_HOST_CUDA_ASAN
    ASAN_UNPOISON_MEMORY_REGION(memory, kStackBytes);
#endif
    return;
  }
  const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  void* const all =
      mmap(nullptr, kStackBytes + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (all == MAP_FAILED || mprotect(all, page, PROT_NONE) != 0) throw std::bad_alloc();
  memory = static_cast<unsigned char*>(all) + page;
}

Stack::~Stack() { unused_stacks().push_back(memory); }

#if defined(__x86_64__)

// Only what a call must keep is saved; the rest the compiler saves at the call.
asm(R"(
.text
.p2align 4
.local dive_host_cuda_switch
.type dive_host_cuda_switch, @function
dive_host_cuda_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size dive_host_cuda_switch, . - dive_host_cuda_switch
)");
constexpr std::size_t kSaved = 6;           // registers
constexpr std::size_t kReturn = kSaved;     // the word that holds where to go on
constexpr std::size_t kFrame = kSaved + 2;  // and one for the alignment that a call leaves

#elif defined(__aarch64__)

asm(R"(
.text
.p2align 4
.local dive_host_cuda_switch
.type dive_host_cuda_switch, %function
dive_host_cuda_switch:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size dive_host_cuda_switch, . - dive_host_cuda_switch
)");
constexpr std::size_t kReturn = 11;
constexpr std::size_t kFrame = 20;

#endif

#if defined(__x86_64__) || defined(__aarch64__)

extern "C" void dive_host_cuda_switch(void** from, void* to);

void* prepare(Stack& stack, void (*entry)()) {
  std::uint64_t frame[kFrame] = {};
  frame[kReturn] = reinterpret_cast<std::uint64_t>(entry);
  unsigned char* const top = stack.memory + kStackBytes - sizeof frame;
  std::memcpy(top, frame, sizeof frame);
  return top;
}

void switch_stacks(void** from, void* to) { dive_host_cuda_switch(from, to); }

#else

// Elsewhere by the system's own, slower means: the context lies at the stack's upper end.
void* prepare(Stack& stack, void (*entry)()) {
  const std::size_t room = (sizeof(ucontext_t) + 63) / 64 * 64;
  auto* const context = new (stack.memory + kStackBytes - room) ucontext_t;
  getcontext(context);
  context->uc_stack.ss_sp = stack.memory;
  context->uc_stack.ss_size = kStackBytes - room;
  context->uc_link = nullptr;
  makecontext(context, entry, 0);
  return context;
}

void switch_stacks(void** from, void* to) {
  ucontext_t here;
  *from = &here;
  swapcontext(&here, static_cast<ucontext_t*>(to));
}

#endif

}  // namespace dive::cuda::host
