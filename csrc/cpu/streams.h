// Reads and copies of memory at the full speed of a core, by which benchmarks measure their floor.
//
// A single pass from front to back is slower: the hardware prefetcher restarts at each page of 4
// KiB. Several streams at the same time hide that, and so does software prefetching; the best
// choice depends on processor, page size and cache, so a benchmark tries several.
#pragma once

#include <cstdint>

#include "cpu/isa.h"

namespace dive::cpu {

struct Streams {
  int count = 1;             // 1, 2, 4 or 8 at the same time
  std::int64_t ahead = 0;    // distance of software prefetches in bytes; 0: none
  bool past_caches = false;  // a copy's stores
  int threads = 1;
};

// The unit of sizes, in bytes.
constexpr std::int64_t kStreamUnit = 4096;

// Reads every byte once; returns a number that depends on all of them.
std::uint64_t read_streams(Isa isa, const void* memory, std::int64_t bytes, const Streams& how);

// `to` and `from` do not overlap, and begin at a cache line.
void copy_streams(Isa isa, void* to, const void* from, std::int64_t bytes, const Streams& how);

}  // namespace dive::cpu
