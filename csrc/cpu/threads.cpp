#include "cpu/threads.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "cpu/cores.h"
#include "cpu/x86.h"

namespace dive::cpu {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::microseconds;

// Between two sections the calling thread is alone for a few microseconds, the norms of one row:
// 10 at most in 99 of 100 cases, measured at width 512 and 1536.
constexpr microseconds kSpin{20};
// Between two steps it is away for longer: Python, and the choice of a token. To sleep sooner would
// cost more than it saves: next to a busy process, the system wakes a thread on the calling one's
// own core (measured: a step of two threads then takes 1.3 times that of one, and never with a
// yield).
constexpr microseconds kYield{500};
// The time after which a working thread yields of its own accord. The system would preempt it
// sooner or later, and then in the middle of a chunk that all threads wait for.
constexpr microseconds kTurn{50};

void pause() {
#if DIVE_X86
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Threads of the steps that are under way in this process.
std::atomic<int> at_work{0};

// How often this process is the child of a fork, counted from its first pool on.
std::atomic<int>& forks() {
  static std::atomic<int> count{0};
  static const int registered = pthread_atfork(nullptr, nullptr, [] {
    ++count;
    at_work = 0;  // what was under way is under way in the parent
  });
  static_cast<void>(registered);
  return count;
}

}  // namespace

// The threads other than the calling one.
class Crew {
 public:
  explicit Crew(int count) {
    try {
      for (int thread = 1; thread < count; ++thread) {
        threads_.emplace_back([this, thread] { serve(thread); });
      }
    } catch (...) {
      dismiss();
      throw;
    }
  }
  Crew(const Crew&) = delete;
  Crew& operator=(const Crew&) = delete;
  ~Crew() { dismiss(); }

  // Among the calling thread and the first `count - 1` others.
  void share(std::int64_t chunks, const Task& task, int count) {
    called_up_.store(count, std::memory_order_relaxed);
    task_ = task;
    chunks_ = chunks;
    unfinished_.store(chunks, std::memory_order_relaxed);
    left_.store(chunks);  // from here on the others help
    if (asleep_.load() > 0) wake();
    std::int64_t done = 0;
    while (take_one(0)) ++done;
    finish(done);
    await_others();
    if (failed_.load(std::memory_order_relaxed)) {
      failed_.store(false, std::memory_order_relaxed);
      std::rethrow_exception(std::exchange(error_, nullptr));
    }
  }

 private:
  // Runs one chunk of the section; false where all are taken.
  bool take_one(int thread) {
    if (left_.load(std::memory_order_relaxed) <= 0) return false;
    // Whatever section it is by now, the chunk belongs to it, and it does not end without it.
    const std::int64_t left = left_.fetch_sub(1, std::memory_order_acq_rel);
    if (left <= 0) return false;
    if (failed_.load(std::memory_order_relaxed)) return true;
    try {
      task_.function(task_.context, chunks_ - left, thread);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (!failed_.exchange(true)) error_ = std::current_exception();
    }
    return true;
  }

  void finish(std::int64_t chunks) { unfinished_.fetch_sub(chunks, std::memory_order_acq_rel); }

  void await_others() {
    const auto finished = [this] { return unfinished_.load(std::memory_order_acquire) == 0; };
    for (int i = 0; i < 64; ++i) {
      if (finished()) return;
      pause();
    }
    const Clock::time_point start = Clock::now();
    while (!finished()) {
      if (Clock::now() - start < kSpin) {
        pause();
      } else {
        std::this_thread::yield();  // the other may be waiting for this very processor
      }
    }
  }

  void serve(int thread) {
    sleep();                                // the first section may be far off
    Clock::time_point turn = Clock::now();  // since when it works without letting others run
    while (true) {
      if (thread < called_up_.load(std::memory_order_relaxed) && take_one(thread)) {
        finish(1);
        const Clock::time_point now = Clock::now();
        if (now - turn > kTurn) {
          std::this_thread::yield();
          turn = Clock::now();
        }
      } else if (!await_section(thread)) {
        return;
      } else {
        turn = Clock::now();
      }
    }
  }

  // False where there will be none.
  bool await_section(int thread) {
    const auto begun = [&] {
      return (left_.load(std::memory_order_relaxed) > 0 &&
              thread < called_up_.load(std::memory_order_relaxed)) ||
             stop_.load(std::memory_order_relaxed);
    };
    const Clock::time_point start = Clock::now();
    for (Clock::duration waited{0}; !begun(); waited = Clock::now() - start) {
      if (waited < kSpin) {
        for (int i = 0; i < 8; ++i) pause();
      } else if (waited < kYield) {
        std::this_thread::yield();
      } else {
        sleep();
        break;
      }
    }
    return !stop_.load(std::memory_order_acquire);
  }

  void sleep() {
    std::unique_lock<std::mutex> lock(mutex_);
    asleep_.fetch_add(1);
    // a section that began before `share` could see this thread asleep is seen here
    if (left_.load() > 0 || stop_.load()) {
      asleep_.fetch_sub(1);
      return;
    }
    const std::int64_t call = calls_;
    called_.wait(lock, [&] { return calls_ != call; });
  }

  void wake() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      asleep_.store(0);
      ++calls_;
    }
    called_.notify_all();
  }

  void dismiss() {
    stop_.store(true);
    wake();
    for (std::thread& thread : threads_) thread.join();
  }

  // what all threads write lies a cache line apart
  alignas(64) std::atomic<std::int64_t> left_{0};  // chunks that nobody has taken; 0 or less: none
  alignas(64) std::atomic<std::int64_t> unfinished_{0};
  alignas(64) Task task_;
  std::int64_t chunks_ = 0;
  std::atomic<int> called_up_{0};
  std::atomic<int> asleep_{0};
  std::atomic<bool> stop_{false};
  std::atomic<bool> failed_{false};
  std::exception_ptr error_;
  std::mutex mutex_;
  std::condition_variable called_;
  std::int64_t calls_ = 0;
  std::vector<std::thread> threads_;
};

Threads::Threads(int count)
    : count_(count), most_(std::max(count, physical_cores())), granted_(count), forks_(forks()) {
  if (count > 1) crew_ = std::make_unique<Crew>(count);
}

Threads::~Threads() { drop_if_forked(); }

// The parent's threads do not exist here, and the locks that they held are in an unknown state: the
// crew is left as it is, for good.
void Threads::drop_if_forked() {
  if (forks_ != forks()) static_cast<void>(crew_.release());
}

Threads::Step::Step(Threads& threads) : threads_(threads) {
  const int count = threads.count_, others = at_work.fetch_add(count);
  threads.granted_ = std::min(count, std::max(1, threads.most_ - others));
  at_work.fetch_sub(count - threads.granted_);
}

Threads::Step::~Step() {
  at_work.fetch_sub(threads_.granted_);
  threads_.granted_ = threads_.count_;
}

void Threads::share_task(std::int64_t chunks, const Task& task) {
  drop_if_forked();
  if (!crew_) {
    crew_ = std::make_unique<Crew>(count_);
    forks_ = forks();
  }
  crew_->share(chunks, task, granted_);
}

}  // namespace dive::cpu
