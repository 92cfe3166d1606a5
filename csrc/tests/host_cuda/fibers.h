// A kernel's launch on the host: its threads as fibers, which hand over at barriers and shuffles.
//
// One fiber runs at a time, in an order that `settings().order` and `seed` choose: a kernel whose
// numbers depend on it lacks a barrier. What a GPU leaves undefined (a barrier that a thread does
// not reach, a shuffle from a lane that takes no part, ...) is a `Fault` that names the place.
#pragma once

#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace dive::cuda::host {

enum class Order { forward, backward, shuffled };

struct Settings {
  Order order = Order::forward;
  std::uint32_t seed = 0;
  int capability = 90;  // of the GPU that is played
  int multiprocessors = 4;
  std::size_t memory = std::size_t{1} << 31;  // that cudaMalloc gives in all
  unsigned ahead = 2;  // kernels of a graph that start before the one that they wait for has run
};
Settings& settings();

struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// One launch, with its arguments: `body` is what each thread does.
struct Launch {
  const void* kernel = nullptr;
  dim3 grid;
  unsigned threads = 0;
  std::size_t shared = 0;
  unsigned cluster = 1;
  bool overlap = false;
  std::function<void()> body;
};

enum class Wait { none, previous, block, cluster, warp, shuffle, vote, mma };

struct Stack;

// Where a fiber, or the code that started it, goes on.
struct Context {
  void* top = nullptr;     // its stack pointer while it rests
  void* bottom = nullptr;  // for AddressSanitizer: its stack
  std::size_t bytes = 0;
  void* fake_stack = nullptr;
};

struct Block;

// On its way into shared memory.
struct Copy {
  void* to;
  const void* from;
  std::size_t bytes;
};

struct Thread {
  uint3 index{};
  Block* block = nullptr;
  std::size_t place = 0;   // among the fibers of its batch
  bool left = false;       // the kernel
  unsigned waited = 0;     // calls of wait_for_previous
  Wait wait = Wait::none;  // what it rests at, in which line of the source
  int line = 0;
  enum { free, arrived, passed } cluster = free;  // its place at the cluster's barrier
  std::vector<Copy> copies;
  unsigned mask = 0;        // the lanes that a shuffle is among
  void* payload = nullptr;  // what it brings to it
  Context context;
  std::unique_ptr<Stack> stack;
};

struct Barrier {
  unsigned arrived = 0;
  int line = 0;
};

struct Cluster;

struct Block {
  uint3 index{};
  dim3 dim, grid;
  Cluster* cluster = nullptr;
  unsigned rank = 0;  // in its cluster
  bool started = false;
  unsigned left = 0;  // threads that left the kernel
  Barrier barrier;
  std::size_t shared_bytes = 0;
  std::unique_ptr<unsigned char, void (*)(void*)> shared{nullptr, nullptr};
  std::vector<Thread> threads;
};

struct Cluster {
  Barrier barrier;
  std::vector<Block> blocks;
};

extern Thread* current;  // the fiber that runs

// The words of device.h that make a fiber rest.
void wait_for_previous();
void sync_block(int line);
void sync_cluster(int line);
void arrive_at_cluster(int line);
void wait_for_cluster(int line);
// All lanes of `mask` meet; the last one calls `resolve` with what each of the 32 brought.
using Resolve = void (*)(void* const* payloads, unsigned mask);
void meet(unsigned mask, Wait what, int line, void* payload, Resolve resolve);
// An error in what the running thread asks for.
[[noreturn]] void fault(const std::string& what);

// A launch that has begun. Its first blocks run up to wait_for_previous in `prologue`, the rest of
// it in `finish`: between the two, what it waits for may run.
class Running {
 public:
  explicit Running(const Launch& launch);
  ~Running();
  Running(const Running&) = delete;
  void prologue();
  void finish();

 private:
  friend void wait_for_previous();
  friend void sync_block(int line);
  friend void arrive_at_cluster(int line);
  friend void wait_for_cluster(int line);
  friend void meet(unsigned mask, Wait what, int line, void* payload, Resolve resolve);
  friend void fault(const std::string& what);

  void start_batch();
  void start_cluster(std::size_t number);
  void run();
  void rest();
  bool arrive(Barrier& barrier, unsigned expected, Wait what, int line);
  void make_ready(Thread& thread);
  Thread* take_next();
  void switch_to(Context& from, Context& to, bool leaves);
  [[noreturn]] static void enter();
  [[noreturn]] void fail_stuck();
  std::string where(const Thread& thread) const;

  Launch launch_;
  std::vector<std::size_t> order_;  // of the clusters
  std::size_t next_cluster_ = 0;
  std::vector<std::unique_ptr<Cluster>> batch_;
  std::vector<Thread*> fibers_;
  std::vector<std::uint64_t> ready_;  // a bit a fiber
  std::size_t low_ = 0, high_ = 0;    // between which words the ready ones are
  std::size_t unfinished_ = 0;
  bool hold_ = false;  // threads rest in wait_for_previous
  std::vector<Thread*> held_;
  std::exception_ptr failure_;
  Context outside_;
  std::mt19937 random_;
};

}  // namespace dive::cuda::host
