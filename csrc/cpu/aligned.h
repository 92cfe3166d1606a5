// Memory that starts at a cache line, freed with its owner.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

namespace dive::cpu {

template <class T>
class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  explicit AlignedBuffer(std::size_t count) { grow(count); }

  // At least `count` elements, zeroed where the buffer had to grow; old contents are then lost.
  void grow(std::size_t count) {
    if (count <= count_) return;
    const std::size_t bytes = (count * sizeof(T) + kLine - 1) / kLine * kLine;
    data_.reset(static_cast<T*>(std::aligned_alloc(kLine, bytes)));
    if (!data_) {
      count_ = 0;
      throw std::bad_alloc();
    }
    std::memset(static_cast<void*>(data_.get()), 0, bytes);
    count_ = count;
  }

  T* data() { return data_.get(); }
  const T* data() const { return data_.get(); }
  std::size_t size() const { return count_; }

 private:
  static constexpr std::size_t kLine = 64;
  struct Free {
    void operator()(void* pointer) const { std::free(pointer); }
  };
  std::unique_ptr<T, Free> data_;
  std::size_t count_ = 0;
};

}  // namespace dive::cpu
