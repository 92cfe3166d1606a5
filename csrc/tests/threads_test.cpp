// Threads without Python, for builds with the sanitizers: the pool by itself, and the decode step
// with more threads than any machine's cores would allow, bit for bit.
#include "cpu/threads.h"

#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <stdexcept>
#include <thread>
#include <vector>

#include "cpu/cores.h"
#include "cpu/isa.h"
#include "tests/random_decoder.h"

namespace {

using namespace dive;
using namespace dive::cpu;

int cases = 0, failures = 0;

void expect(bool holds, const char* what, int threads) {
  ++cases;
  if (holds) return;
  ++failures;
  std::printf("%d threads: %s\n", threads, what);
}

void pause_for(int microseconds) {
  std::this_thread::sleep_for(std::chrono::microseconds(microseconds));
}

// Each chunk runs once, on a thread that runs nothing else at that time, and what it wrote is seen.
void shares_every_chunk(int count) {
  Threads threads(count);
  expect(threads.count() == count, "count is another", count);
  std::vector<int> runs;
  std::vector<std::atomic<int>> busy(static_cast<std::size_t>(count));
  std::atomic<bool> alone{true};
  bool all = true;
  for (int section = 0; section < 400; ++section) {
    const std::int64_t chunks = section % 37;
    runs.assign(static_cast<std::size_t>(chunks), 0);
    threads.share(chunks, [&](std::int64_t chunk, int thread) {
      if (busy[static_cast<std::size_t>(thread)].fetch_add(1) != 0) alone = false;
      ++runs[static_cast<std::size_t>(chunk)];
      busy[static_cast<std::size_t>(thread)].fetch_sub(1);
    });
    for (const int one : runs) all = all && one == 1;
    if (section % 100 == 99) pause_for(section == 199 ? 20 : 2000);  // while they spin, or sleep
  }
  expect(all, "a chunk ran other than once", count);
  expect(alone, "two chunks at a time on one thread", count);
}

// The others take over what a thread that stands still does not take.
void a_slow_thread_holds_up_one_chunk(int count) {
  Threads threads(count);
  std::vector<int> runs(static_cast<std::size_t>(count), 0);
  int late = 0;
  for (int section = 0; section < 10; ++section) {
    runs.assign(runs.size(), 0);
    threads.share(60, [&](std::int64_t, int thread) {
      ++runs[static_cast<std::size_t>(thread)];
      pause_for(thread == count - 1 ? 20000 : 50);
    });
    if (runs.back() > 3) ++late;  // 60 chunks of 50 us each take less than one of 20 ms, mostly
  }
  expect(late < 10, "the slow thread took as much as the others", count);
}

void an_exception_reaches_the_caller(int count) {
  Threads threads(count);
  for (int section = 0; section < 20; ++section) {
    std::atomic<int> ran{0};
    bool caught = false;
    try {
      threads.share(50, [&](std::int64_t chunk, int) {
        ++ran;
        if (chunk % 5 == 3) throw std::runtime_error("no");
      });
    } catch (const std::runtime_error& error) {
      caught = std::strcmp(error.what(), "no") == 0;
    }
    expect(caught, "the exception was lost", count);
    expect(ran >= 1 && ran <= 50, "chunks after an exception", count);
    ran = 0;
    threads.share(50, [&](std::int64_t, int) { ++ran; });
    expect(ran == 50, "not whole after an exception", count);
  }
}

void ends_at_any_time(int count) {
  for (int i = 0; i < 20; ++i) {
    Threads threads(count);
    if (i % 2 == 0) threads.share(8, [](std::int64_t, int) {});
    if (i % 5 == 0) pause_for(1500);  // they sleep
  }
}

// Two steps at a time have no more threads between them than there are cores, and the calling ones.
void steps_share_the_cores() {
  const int count = std::max(3, physical_cores());
  Threads first(count), second(count);
  const auto others_help = [&] {
    std::atomic<int> helped{0};
    for (int section = 0; section < 50 && helped == 0; ++section) {
      second.share(20, [&](std::int64_t, int thread) {
        helped += thread != 0;
        pause_for(100);
      });
    }
    return helped > 0;
  };
  {
    const Threads::Step under_way(first), another(second);
    expect(!others_help(), "more threads than cores", count);
  }
  const Threads::Step alone(second);
  expect(others_help(), "alone and without help", count);
}

// A child of a fork has none of the threads: it works, and ends.
void survives_a_fork(int count) {
  auto used = std::make_unique<Threads>(count), unused = std::make_unique<Threads>(count);
  used->share(16, [](std::int64_t, int) {});
  const pid_t child = fork();
  if (child == 0) {
    std::atomic<int> ran{0};
    used->share(16, [&](std::int64_t, int) { ++ran; });
    used.reset();
    unused.reset();
    _exit(ran == 16 ? 0 : 1);
  }
  int status = -1;
  waitpid(child, &status, 0);
  expect(WIFEXITED(status) && WEXITSTATUS(status) == 0, "the child of a fork failed", count);
  std::atomic<int> ran{0};
  used->share(16, [&](std::int64_t, int) { ++ran; });
  expect(ran == 16, "the parent of a fork failed", count);
}

// All logits and tokens of a few steps: of one sequence, then of three, one of which is far ahead.
std::vector<float> decode(Engine& engine, const std::function<void(int)>& before_step = {}) {
  const std::int64_t vocabulary = engine.spec().head.rows;
  std::vector<float> all, logits(static_cast<std::size_t>(4 * vocabulary));
  engine.reserve(4, 60);
  for (const std::int64_t slot : {2, 0, 3}) engine.start_slot(slot, 0, 0);
  const std::vector<std::vector<std::int64_t>> batches = {{2}, {2, 0, 3}};
  for (int t = 0; t < 40; ++t) {
    const auto& slots = batches[static_cast<std::size_t>(t / 20)];
    std::vector<std::int64_t> tokens, next(slots.size());
    for (const std::int64_t slot : slots) tokens.push_back((7 * t + 5 * slot) % vocabulary);
    if (before_step) before_step(t);
    engine.step(tokens.data(), slots.data(), static_cast<std::int64_t>(slots.size()), next.data(),
                logits.data());
    all.insert(all.end(), logits.begin(), logits.end());
    for (const std::int64_t one : next) all.push_back(static_cast<float>(one));
  }
  return all;
}

bool same(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

template <class T>
void decodes_the_same(const Sizes& sizes) {
  const RandomDecoder<T> decoder(sizes);
  for (const Isa isa : usable_isas()) {
    use_isa(name_of(isa));
    Engine alone = decoder.engine(1);
    const std::vector<float> want = decode(alone);
    bool finite = true;
    for (const float one : want) finite = finite && std::isfinite(one);
    expect(finite, "numbers that are none", 1);
    for (const int count : {2, 3, 5}) {
      Engine engine = decoder.engine(count, 1);  // the smallest parts that there can be
      expect(same(decode(engine), want), name_of(isa), count);
    }
  }
  Engine changing = decoder.engine(3, 1), alone = decoder.engine(1);
  const std::vector<float> got = decode(changing, [&](int t) { changing.set_threads(1 + t % 4); });
  expect(same(got, decode(alone)), "threads that change between steps", 4);

  // two engines, each in a thread of its own
  const std::vector<float> want = decode(alone);
  std::vector<std::vector<float>> both(2);
  std::vector<std::thread> callers;
  for (auto& one : both) {
    callers.emplace_back([&] {
      Engine engine = decoder.engine(3, 1);
      one = decode(engine);
    });
  }
  for (std::thread& caller : callers) caller.join();
  for (const auto& one : both) expect(same(one, want), "two engines at a time", 3);
}

}  // namespace

int main(int argc, char** argv) {
  expect(physical_cores() >= 1, "no physical core", 1);
  for (const int count : {1, 2, 3, 6}) {
    shares_every_chunk(count);
    an_exception_reaches_the_caller(count);
    ends_at_any_time(count);
    // a sanitizer's own locks may be held at a fork, and ThreadSanitizer forbids the child threads
    if (argc < 2 || std::strcmp(argv[1], "--no-fork") != 0) survives_a_fork(count);
  }
  a_slow_thread_holds_up_one_chunk(3);
  steps_share_the_cores();

  Sizes odd, even;
  odd.window = 9;
  even.width = 128;
  even.head_width = 64;
  even.mlp_width = 320;
  even.four_norms = false;
  decodes_the_same<float>(odd);
  decodes_the_same<BFloat16>(odd);
  decodes_the_same<float>(even);
  decodes_the_same<BFloat16>(even);
  std::printf("%d cases, %d failures\n", cases, failures);
  return failures == 0 ? 0 : 1;
}
