// The threads that share the sections of a decode step.
//
// A section is divided into many small chunks, which free threads, the calling one included, take
// from a common counter. A slow or preempted thread therefore delays the others by one chunk at
// most, and they take the chunks that it does not. A thread without work spins for about as long as
// the calling thread is busy between two sections, then yields, then sleeps. Next to a process that
// never rests the threads thus give way to it, and the calling thread does nearly all the work, in
// the time that it takes alone.
#pragma once

#include <cstdint>
#include <memory>

namespace dive::cpu {

class Crew;

// What is called for each chunk: function(context, chunk, thread).
struct Task {
  void (*function)(const void* context, std::int64_t chunk, int thread) = nullptr;
  const void* context = nullptr;
};

// In the child of a fork the threads are started anew at the first section.
class Threads {
 public:
  // `count` threads, the calling one among them; std::system_error where they cannot be started.
  explicit Threads(int count);
  Threads(const Threads&) = delete;
  Threads& operator=(const Threads&) = delete;
  ~Threads();  // waits for them to end; nobody may be in `share`

  int count() const { return count_; }

  // Marks a step as running while it lives. Steps at the same time, of several engines, share the
  // cores: one that begins gets the threads that the others leave, and itself at least.
  class Step {
   public:
    explicit Step(Threads& threads);
    Step(const Step&) = delete;
    Step& operator=(const Step&) = delete;
    ~Step();

   private:
    Threads& threads_;
  };

  // Calls work(chunk, thread) for each chunk from 0 to `chunks`, on any thread and in any order;
  // `thread`, from 0 to `count`, differs between calls that run at the same time. Returns when all
  // are done; an exception leaves out the chunks not begun, and the first one is thrown here. For
  // one caller at a time.
  template <class Work>
  void share(std::int64_t chunks, const Work& work) {
    if (chunks < 2 || granted_ < 2) {
      for (std::int64_t chunk = 0; chunk < chunks; ++chunk) work(chunk, 0);
      return;
    }
    share_task(chunks, {[](const void* context, std::int64_t chunk, int thread) {
                          (*static_cast<const Work*>(context))(chunk, thread);
                        },
                        &work});
  }

 private:
  void share_task(std::int64_t chunks, const Task& task);
  void drop_if_forked();

  int count_;
  int most_;     // threads at work in the process: its cores
  int granted_;  // of `count_`, in this step
  int forks_;    // of this process, when the crew was made
  std::unique_ptr<Crew> crew_;
};

}  // namespace dive::cpu
