#include "cpu/streams.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "cpu/threads.h"
#include "cpu/x86.h"

#if DIVE_X86
#include <immintrin.h>
#endif

namespace dive::cpu {
namespace {

// The bytes per chunk of a thread: long streams, and small against any buffer worth measuring.
constexpr std::int64_t kChunk = std::int64_t{4} << 20;

namespace plain {

#define DIVE_TARGET
#define DIVE_INLINE inline

using Block = std::uint64_t;
DIVE_INLINE Block load(const unsigned char* from) {
  Block block;
  std::memcpy(&block, from, sizeof block);
  return block;
}
DIVE_INLINE void store(Block block, unsigned char* to) { std::memcpy(to, &block, sizeof block); }
DIVE_INLINE void store_past_caches(Block block, unsigned char* to) { store(block, to); }
DIVE_INLINE Block both(Block a, Block b) { return a ^ b; }
DIVE_INLINE std::uint64_t fold(Block block) { return block; }

#include "cpu/streams_body.h"

#undef DIVE_TARGET
#undef DIVE_INLINE

}  // namespace plain

#if DIVE_X86

namespace avx2 {

#define DIVE_TARGET __attribute__((target("avx2")))
#define DIVE_INLINE DIVE_TARGET inline __attribute__((always_inline))

using Block = __m256i;
DIVE_INLINE Block load(const unsigned char* from) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
}
DIVE_INLINE void store(Block block, unsigned char* to) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), block);
}
DIVE_INLINE void store_past_caches(Block block, unsigned char* to) {
  _mm256_stream_si256(reinterpret_cast<__m256i*>(to), block);
}
DIVE_INLINE Block both(Block a, Block b) { return _mm256_xor_si256(a, b); }
DIVE_INLINE std::uint64_t fold(Block block) {
  std::uint64_t words[4];
  std::memcpy(words, &block, sizeof words);
  return words[0] ^ words[1] ^ words[2] ^ words[3];
}

#include "cpu/streams_body.h"

#undef DIVE_TARGET
#undef DIVE_INLINE

}  // namespace avx2

namespace avx512 {

#define DIVE_TARGET __attribute__((target("avx512f")))
#define DIVE_INLINE DIVE_TARGET inline __attribute__((always_inline))

using Block = __m512i;
DIVE_INLINE Block load(const unsigned char* from) { return _mm512_loadu_si512(from); }
DIVE_INLINE void store(Block block, unsigned char* to) { _mm512_storeu_si512(to, block); }
DIVE_INLINE void store_past_caches(Block block, unsigned char* to) {
  _mm512_stream_si512(reinterpret_cast<__m512i*>(to), block);
}
DIVE_INLINE Block both(Block a, Block b) { return _mm512_xor_si512(a, b); }
DIVE_INLINE std::uint64_t fold(Block block) {
  std::uint64_t words[8];
  std::memcpy(words, &block, sizeof words);
  std::uint64_t all = 0;
  for (const std::uint64_t word : words) all ^= word;
  return all;
}

#include "cpu/streams_body.h"

#undef DIVE_TARGET
#undef DIVE_INLINE

}  // namespace avx512

#endif

// work(first byte, bytes) for each chunk, by the requested number of threads.
template <class Work>
void each_chunk(std::int64_t bytes, int count, const Work& work) {
  Threads threads(count);
  const Threads::Step under_way(threads);
  threads.share((bytes + kChunk - 1) / kChunk, [&](std::int64_t chunk, int) {
    const std::int64_t first = chunk * kChunk;
    work(first, std::min(kChunk, bytes - first));
  });
}

}  // namespace

std::uint64_t read_streams([[maybe_unused]] Isa isa, const void* memory, std::int64_t bytes,
                           const Streams& how) {
  auto* read = plain::read_any;
#if DIVE_X86
  if (isa >= Isa::avx512) {
    read = avx512::read_any;
  } else if (isa == Isa::avx2) {
    read = avx2::read_any;
  }
#endif
  const auto* const from = static_cast<const unsigned char*>(memory);
  std::atomic<std::uint64_t> all{0};
  each_chunk(bytes, how.threads, [&](std::int64_t first, std::int64_t count) {
    all ^= read(how.count, from + first, count, how.ahead);
  });
  return all;
}

void copy_streams([[maybe_unused]] Isa isa, void* to, const void* from, std::int64_t bytes,
                  const Streams& how) {
  auto* copy = plain::copy_any;
#if DIVE_X86
  if (isa >= Isa::avx512) {
    copy = avx512::copy_any;
  } else if (isa == Isa::avx2) {
    copy = avx2::copy_any;
  }
#endif
  auto* const target = static_cast<unsigned char*>(to);
  const auto* const source = static_cast<const unsigned char*>(from);
  each_chunk(bytes, how.threads, [&](std::int64_t first, std::int64_t count) {
    copy(how.count, target + first, source + first, count, how.ahead, how.past_caches);
#if DIVE_X86
    if (how.past_caches) _mm_sfence();  // in order with what other threads do after this
#endif
  });
}

}  // namespace dive::cpu
