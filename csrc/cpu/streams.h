// Memory read or copied as fast as a core can: what a benchmark's floor is measured by.
//
// One pass from front to back is not that: at the end of each page of 4 KiB the processor's
// prefetching begins anew. Several streams side by side hide it, and so does asking ahead; which
// is best depends on processor, page size and cache, so a benchmark tries several.
#pragma once

#include <cstdint>

#include "cpu/isa.h"

namespace dive::cpu {

struct Streams {
  int count = 1;             // 1, 2, 4 or 8 places at the same time
  std::int64_t ahead = 0;    // bytes that are asked for before their use; 0: none
  bool past_caches = false;  // a copy's stores
  int threads = 1;
};

// What a size must be a multiple of, in bytes.
constexpr std::int64_t kStreamUnit = 4096;

// Every byte once; a number that depends on all of them.
std::uint64_t read_streams(Isa isa, const void* memory, std::int64_t bytes, const Streams& how);

// `to` and `from` do not overlap, and begin at a cache line.
void copy_streams(Isa isa, void* to, const void* from, std::int64_t bytes, const Streams& how);

}  // namespace dive::cpu
