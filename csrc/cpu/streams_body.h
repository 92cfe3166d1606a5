// One chunk of `read_streams` and `copy_streams`, for blocks of one instruction set. Included once
// by each set's namespace, which has defined DIVE_TARGET, DIVE_INLINE, Block and load, store,
// store_past_caches, both (bitwise exclusive or) and fold of it. No include guard for that reason.

// 8 blocks of each stream in turn: enough loads at the same time for any distance to memory.
constexpr std::int64_t kStep = 8 * sizeof(Block) < 512 ? 8 * sizeof(Block) : 512;
constexpr int kBlocks = static_cast<int>(kStep / sizeof(Block));
constexpr int kLine = 64;

template <int count>
DIVE_TARGET std::uint64_t read_chunk(const unsigned char* from, std::int64_t bytes,
                                     std::int64_t ahead) {
  constexpr int kOwn = kBlocks / count > 0 ? kBlocks / count : 1;  // at a time, of each stream
  constexpr std::int64_t own = kOwn * sizeof(Block);
  const std::int64_t part = bytes / count;
  Block sums[count][kOwn];
  for (auto& stream : sums) {
    for (Block& sum : stream) sum = Block{};
  }
  for (std::int64_t i = 0; i < part; i += own) {
    for (int s = 0; s < count; ++s) {
      const unsigned char* const at = from + s * part + i;
      if (ahead > 0) {
        for (std::int64_t line = 0; line < own; line += kLine) {
          __builtin_prefetch(at + line + ahead);
        }
      }
      for (int b = 0; b < kOwn; ++b) sums[s][b] = both(sums[s][b], load(at + b * sizeof(Block)));
    }
  }
  std::uint64_t all = 0;
  for (const auto& stream : sums) {
    for (const Block& sum : stream) all ^= fold(sum);
  }
  return all;
}

template <int count>
DIVE_TARGET void copy_chunk(unsigned char* to, const unsigned char* from, std::int64_t bytes,
                            std::int64_t ahead, bool past_caches) {
  constexpr std::int64_t own = 4 * kLine;
  const std::int64_t part = bytes / count;
  for (std::int64_t i = 0; i < part; i += own) {
    for (int s = 0; s < count; ++s) {
      const std::int64_t at = s * part + i;
      if (ahead > 0) {
        for (std::int64_t line = 0; line < own; line += kLine) {
          __builtin_prefetch(from + at + line + ahead);
          if (!past_caches) __builtin_prefetch(to + at + line + ahead, 1);
        }
      }
      if (past_caches) {
        for (std::int64_t b = 0; b < own; b += sizeof(Block)) {
          store_past_caches(load(from + at + b), to + at + b);
        }
      } else {
        for (std::int64_t b = 0; b < own; b += sizeof(Block))
          store(load(from + at + b), to + at + b);
      }
    }
  }
}

std::uint64_t read_any(int count, const unsigned char* from, std::int64_t bytes,
                       std::int64_t ahead) {
  if (count == 8) return read_chunk<8>(from, bytes, ahead);
  if (count == 4) return read_chunk<4>(from, bytes, ahead);
  if (count == 2) return read_chunk<2>(from, bytes, ahead);
  return read_chunk<1>(from, bytes, ahead);
}

void copy_any(int count, unsigned char* to, const unsigned char* from, std::int64_t bytes,
              std::int64_t ahead, bool past_caches) {
  if (count == 8) return copy_chunk<8>(to, from, bytes, ahead, past_caches);
  if (count == 4) return copy_chunk<4>(to, from, bytes, ahead, past_caches);
  if (count == 2) return copy_chunk<2>(to, from, bytes, ahead, past_caches);
  copy_chunk<1>(to, from, bytes, ahead, past_caches);
}
