#include "tests/host_cuda/fibers.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <numeric>

#include "tests/host_cuda/context.h"
#include "tests/host_cuda/kernel_name.h"

namespace dive::cuda::host {
namespace {

constexpr std::size_t kBatch = 1024;  // threads that are there at once, if one cluster is no larger

Running* running = nullptr;

const char* name_of(Wait wait) {
  switch (wait) {
    case Wait::none: return "nothing";
    case Wait::previous: return "wait_for_previous";
    case Wait::block: return "__syncthreads";
    case Wait::cluster: return "cluster_sync";
    case Wait::warp: return "__syncwarp";
    case Wait::shuffle: return "a shuffle";
    case Wait::vote: return "a vote";
    case Wait::mma: return "mma_16816";
  }
  return "";
}

std::string rest_of(const Thread& thread) {
  if (thread.left) return "has left the kernel";
  return std::string("is at ") + name_of(thread.wait) + ", line " + std::to_string(thread.line);
}

}  // namespace

Thread* current = nullptr;

Settings& settings() {
  static Settings all;
  return all;
}

Running::Running(const Launch& launch) : launch_(launch), random_(settings().seed) {
  const std::size_t blocks = std::size_t{launch.grid.x} * launch.grid.y * launch.grid.z;
  order_.resize(blocks / launch.cluster);
  std::iota(order_.begin(), order_.end(), std::size_t{0});
  if (settings().order == Order::backward) std::reverse(order_.begin(), order_.end());
  if (settings().order == Order::shuffled) std::shuffle(order_.begin(), order_.end(), random_);
}

Running::~Running() = default;

void Running::prologue() {
  hold_ = true;
  start_batch();
  run();
}

void Running::finish() {
  hold_ = false;
  for (Thread* const thread : held_) make_ready(*thread);
  held_.clear();
  while (true) {
    run();
    if (unfinished_ > 0) fail_stuck();
    if (next_cluster_ == order_.size()) return;
    start_batch();
  }
}

void Running::start_batch() {
  batch_.clear();
  fibers_.clear();
  do {
    start_cluster(order_[next_cluster_++]);
  } while (next_cluster_ < order_.size() &&
           fibers_.size() + launch_.cluster * launch_.threads <= kBatch);
  unfinished_ = fibers_.size();
  ready_.assign((fibers_.size() + 63) / 64, 0);
  low_ = ready_.size();
  high_ = 0;
  for (Thread* const fiber : fibers_) make_ready(*fiber);
}

void Running::start_cluster(std::size_t number) {
  batch_.push_back(std::make_unique<Cluster>());
  Cluster& cluster = *batch_.back();
  cluster.blocks.resize(launch_.cluster);
  for (unsigned rank = 0; rank < launch_.cluster; ++rank) {
    Block& block = cluster.blocks[rank];
    const std::size_t at = number * launch_.cluster + rank;
    block.grid = launch_.grid;
    block.dim = dim3(launch_.threads);
    block.index = {static_cast<unsigned>(at % launch_.grid.x),
                   static_cast<unsigned>(at / launch_.grid.x % launch_.grid.y),
                   static_cast<unsigned>(at / launch_.grid.x / launch_.grid.y)};
    block.cluster = &cluster;
    block.rank = rank;
    block.shared_bytes = launch_.shared;
    void* memory = nullptr;  // exactly of the requested size, so that AddressSanitizer sees the end
    if (posix_memalign(&memory, 128, launch_.shared) != 0) throw std::bad_alloc();
    block.shared = {static_cast<unsigned char*>(memory), &std::free};
    block.threads.resize(launch_.threads);
    for (unsigned i = 0; i < launch_.threads; ++i) {
      Thread& thread = block.threads[i];
      thread.index = {i, 0, 0};
      thread.block = &block;
      thread.place = fibers_.size();
      thread.stack = std::make_unique<Stack>();
      thread.context.top = prepare(*thread.stack, &Running::enter);
      thread.context.bottom = thread.stack->memory;
      thread.context.bytes = kStackBytes;
      fibers_.push_back(&thread);
    }
  }
}

// Runs fibers until none can go on.
void Running::run() {
#ifdef DIVE_HOST_CUDA_ASAN
  pthread_attr_t own;
  pthread_getattr_np(pthread_self(), &own);
  pthread_attr_getstack(&own, &outside_.bottom, &outside_.bytes);
  pthread_attr_destroy(&own);
#endif
  running = this;
  Thread* const first = take_next();
  if (first != nullptr) {
    current = first;
    switch_to(outside_, first->context, false);
  }
  current = nullptr;
  running = nullptr;
  if (failure_) std::rethrow_exception(failure_);
}

// Where a fiber begins, and where it ends.
void Running::enter() {
#ifdef DIVE_HOST_CUDA_ASAN
  __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
  Thread& self = *current;
  Block& block = *self.block;
  try {
    if (!block.started) std::memset(block.shared.get(), 0xff, block.shared_bytes);
    block.started = true;
    running->launch_.body();
    if (self.waited == 0) fault("left the kernel without a call of wait_for_previous");
  } catch (...) {
    running->failure_ = std::current_exception();
  }
  self.left = true;
  --running->unfinished_;
  // another block of the cluster that still reads it reads nothing sensible
  if (++block.left == block.threads.size()) {
    std::memset(block.shared.get(), 0xff, block.shared_bytes);
  }
  Thread* const next = running->failure_ ? nullptr : running->take_next();
  current = next;
  running->switch_to(self.context, next == nullptr ? running->outside_ : next->context, true);
  std::abort();
}

// The running fiber stops until it is made ready.
void Running::rest() {
  Thread& self = *current;
  Thread* const next = take_next();
  if (next == &self) return;
  current = next;
  switch_to(self.context, next == nullptr ? outside_ : next->context, false);
}

void Running::switch_to(Context& from, Context& to, [[maybe_unused]] bool leaves) {
#ifdef DIVE_HOST_CUDA_ASAN
  __sanitizer_start_switch_fiber(leaves ? nullptr : &from.fake_stack, to.bottom, to.bytes);
#endif
  switch_stacks(&from.top, to.top);
#ifdef DIVE_HOST_CUDA_ASAN
  __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
}

void Running::make_ready(Thread& thread) {
  thread.wait = Wait::none;
  const std::size_t word = thread.place / 64;
  ready_[word] |= std::uint64_t{1} << thread.place % 64;
  low_ = std::min(low_, word);
  high_ = std::max(high_, word);
}

// The first, the last, or the first from somewhere on of the fibers that can go on; none: null.
Thread* Running::take_next() {
  while (low_ <= high_ && ready_[low_] == 0) ++low_;
  if (low_ > high_) {
    low_ = ready_.size();
    high_ = 0;
    return nullptr;
  }
  while (ready_[high_] == 0) --high_;
  std::size_t word = low_, place = 0;
  if (settings().order == Order::backward) {
    word = high_;
    place = 63 - static_cast<std::size_t>(__builtin_clzll(ready_[word]));
  } else {
    std::uint64_t candidates = ready_[word];
    if (settings().order == Order::shuffled) {
      const std::size_t start = low_ * 64 + random_() % ((high_ - low_ + 1) * 64);
      word = start / 64;
      candidates = ready_[word] & ~std::uint64_t{0} << start % 64;
      while (candidates == 0) {
        word = word == high_ ? low_ : word + 1;
        candidates = ready_[word];
      }
    }
    place = static_cast<std::size_t>(__builtin_ctzll(candidates));
  }
  ready_[word] &= ~(std::uint64_t{1} << place);
  return fibers_[word * 64 + place];
}

// True for the last one that the barrier waits for.
bool Running::arrive(Barrier& barrier, unsigned expected, Wait what, int line) {
  if (barrier.arrived > 0 && barrier.line != line) {
    fault(std::string("is at ") + name_of(what) + " of line " + std::to_string(line) +
          ", where others wait at that of line " + std::to_string(barrier.line));
  }
  barrier.line = line;
  if (++barrier.arrived < expected) return false;
  barrier.arrived = 0;
  return true;
}

void sync_block(int line) {
  Thread& self = *current;
  Block& block = *self.block;
  self.wait = Wait::block;
  self.line = line;
  if (running->arrive(block.barrier, block.dim.x, Wait::block, line)) {
    for (Thread& thread : block.threads) running->make_ready(thread);
  }
  running->rest();
}

void arrive_at_cluster(int line) {
  Thread& self = *current;
  Cluster& cluster = *self.block->cluster;
  if (self.cluster != Thread::free) fault("arrives at the cluster's barrier twice");
  self.cluster = Thread::arrived;
  const auto expected = static_cast<unsigned>(cluster.blocks.size()) * self.block->dim.x;
  if (!running->arrive(cluster.barrier, expected, Wait::cluster, line)) return;
  for (Block& block : cluster.blocks) {
    for (Thread& thread : block.threads) {
      thread.cluster = Thread::passed;
      if (thread.wait == Wait::cluster) running->make_ready(thread);
    }
  }
}

void wait_for_cluster(int line) {
  Thread& self = *current;
  if (self.cluster == Thread::free) fault("waits at the cluster's barrier without an arrival");
  self.wait = Wait::cluster;
  self.line = line;
  if (self.cluster == Thread::passed) running->make_ready(self);
  running->rest();
  self.cluster = Thread::free;
}

void sync_cluster(int line) {
  arrive_at_cluster(line);
  wait_for_cluster(line);
}

void wait_for_previous() {
  Thread& self = *current;
  ++self.waited;
  if (!running->hold_) return;
  self.wait = Wait::previous;
  running->held_.push_back(&self);
  running->rest();
}

void meet(unsigned mask, Wait what, int line, void* payload, Resolve resolve) {
  Thread& self = *current;
  const unsigned lane = self.index.x % 32;
  Thread* const lanes = &self - lane;
  const unsigned there = std::min(32u, self.block->dim.x - (self.index.x - lane));
  if ((mask >> lane & 1) == 0) fault(std::string("is not in its own mask of ") + name_of(what));
  if (there < 32 && mask >> there != 0) {
    fault(std::string("names in ") + name_of(what) + " lanes from " + std::to_string(there) +
          " on, which its warp does not have");
  }
  self.wait = what;
  self.line = line;
  self.mask = mask;
  self.payload = payload;
  const auto arrived = [&](unsigned l) {
    return l >= there || (mask >> l & 1) == 0 || (lanes[l].wait == what && lanes[l].mask == mask);
  };
  // first the neighbours: in most orders they tell that it is too early
  bool all = arrived(lane + 1) && (lane == 0 || arrived(lane - 1));
  for (unsigned l = 0; l < there && all; ++l) all = arrived(l);
  if (all && resolve != nullptr) {
    void* payloads[32] = {};
    for (unsigned l = 0; l < there; ++l) {
      if (mask >> l & 1) payloads[l] = lanes[l].payload;
    }
    resolve(payloads, mask);
  }
  if (all) {
    for (unsigned l = 0; l < there; ++l) {
      if (mask >> l & 1) running->make_ready(lanes[l]);
    }
  }
  running->rest();
}

std::string Running::where(const Thread& thread) const {
  const uint3& block = thread.block->index;
  return name_of_kernel(launch_.kernel) + ", block (" + std::to_string(block.x) + ", " +
         std::to_string(block.y) + ", " + std::to_string(block.z) + "), thread " +
         std::to_string(thread.index.x);
}

void fault(const std::string& what) {
  throw Fault("CUDA on the host: " + running->where(*current) + " " + what);
}

// No fiber can go on: the message names one that waits, and for what.
void Running::fail_stuck() {
  const auto rests = [](const Thread* fiber) { return !fiber->left; };
  const Thread& self = **std::find_if(fibers_.begin(), fibers_.end(), rests);
  std::string text = "CUDA on the host: " + where(self) + " " + rest_of(self);
  for (const Thread* const other : fibers_) {
    if (other->block->cluster != self.block->cluster) continue;
    if (self.wait != Wait::cluster && other->block != self.block) continue;
    const bool lane = other->block == self.block && other->index.x / 32 == self.index.x / 32;
    const bool named = lane && (self.mask >> other->index.x % 32 & 1) != 0;
    if (self.wait != Wait::cluster && self.wait != Wait::block && !named) continue;
    const bool same = other->wait == self.wait && !other->left;
    if (same &&
        (self.wait == Wait::cluster || self.wait == Wait::block || other->mask == self.mask))
      continue;
    text += ", but thread " + std::to_string(other->index.x) + " of block " +
            std::to_string(other->block->index.x) + " " + rest_of(*other);
    break;
  }
  throw Fault(text);
}

}  // namespace dive::cuda::host
