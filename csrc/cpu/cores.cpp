#include "cpu/cores.h"

#include <algorithm>
#include <fstream>
#include <set>
#include <string>
#include <thread>
#include <vector>

#ifdef __linux__
#include <sched.h>
#endif

namespace dive::cpu {
namespace {

#ifdef __linux__
// The processors of the calling thread's affinity mask; empty where the system does not say.
std::vector<int> allowed_processors() {
  for (int capacity = CPU_SETSIZE; capacity <= (1 << 20);
       capacity *= 2) {  // the kernel's mask may be longer
    std::vector<cpu_set_t> mask(static_cast<std::size_t>(capacity / CPU_SETSIZE));
    const std::size_t bytes = mask.size() * sizeof(cpu_set_t);
    if (sched_getaffinity(0, bytes, mask.data()) != 0) continue;
    std::vector<int> processors;
    for (int one = 0; one < capacity; ++one) {
      if (CPU_ISSET_S(static_cast<std::size_t>(one), bytes, mask.data())) processors.push_back(one);
    }
    return processors;
  }
  return {};
}

// The processors that share this one's core, as the system lists them; empty where it does not.
std::string siblings(int processor) {
  const std::string folder =
      "/sys/devices/system/cpu/cpu" + std::to_string(processor) + "/topology/";
  for (const char* const name : {"core_cpus_list", "thread_siblings_list"}) {  // new name, old name
    std::string list;
    if (std::getline(std::ifstream(folder + name), list) && !list.empty()) return list;
  }
  return {};
}

int count_cores() {
  const std::vector<int> processors = allowed_processors();
  std::set<std::string> cores;
  for (const int one : processors) {
    std::string list = siblings(one);
    if (list.empty()) return static_cast<int>(processors.size());
    cores.insert(std::move(list));
  }
  return static_cast<int>(cores.size());
}
#else
int count_cores() { return 0; }
#endif

}  // namespace

int physical_cores() {
  const int cores = count_cores();
  return cores > 0 ? cores : std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

}  // namespace dive::cpu
