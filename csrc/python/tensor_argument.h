// Tensors as Python passes them: taken by DLPack, checked, and held for as long as they are used.
// Code of the caller may run while a tensor is read, so no value is read twice.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <string>
#include <vector>

#include "dtype.h"
#include "python/dlpack.h"

namespace dive {

// One argument that is a tensor. Every check raises ValueError, which names the argument, what it
// got and what is wanted. It holds the object, and with it the memory, unless the caller frees
// that: `check_unmoved` finds it, and is called when no code of Python runs any more.
class TensorArgument {
 public:
  // By the type's exchange table where there is one (no Python object is made and parameters that
  // require a gradient are accepted), by `__dlpack__` elsewhere. Its memory is that of `device`.
  TensorArgument(std::string name, pybind11::handle object,
                 dlpack::Device device = {dlpack::kCpu, 0});

  TensorArgument(TensorArgument&&) = default;
  TensorArgument& operator=(TensorArgument&&) = default;

  const std::string& name() const { return name_; }
  std::int64_t dimensions() const { return static_cast<std::int64_t>(shape_.size()); }
  std::int64_t size(std::size_t dimension) const { return shape_[dimension]; }
  std::int64_t stride(std::size_t dimension) const { return strides_[dimension]; }
  std::int64_t numel() const;
  void* data() const { return data_; }

  // The stored format; `dtype()` only after `want_dtype` accepted it.
  DType dtype() const { return dtype_; }
  void want_dtype(std::initializer_list<DType> wanted);
  void want_int64();
  // A negative size stands for any; `wanted` describes the sizes, as "[rows, width]".
  void want_shape(std::initializer_list<std::int64_t> sizes, const std::string& wanted) const;
  // Numbers of the last dimension one after another, and rows that do not overlap.
  void want_rows() const;
  void want_writable() const;

  // ValueError where the memory is no longer where it was; `owner` names who took it.
  void check_unmoved(const char* owner = "this call") const;
  // ValueError where torch's storage has been made smaller than the tensor over it.
  void want_storage() const;

  // Whether the two share memory (by the range from the first number to the last).
  bool overlaps(const TensorArgument& other) const;

  [[noreturn]] void fail(const std::string& got_and_wanted) const;

 private:
  void read(const dlpack::Tensor& tensor);
  void check_extent();
  bool take_by_table(pybind11::handle object);
  void take_by_capsule(pybind11::handle object);
  std::string shape_text() const;
  std::string dtype_text() const;

  std::string name_;
  dlpack::Device device_;
  pybind11::object object_;
  const dlpack::ExchangeApi* table_ = nullptr;  // null: `owner_` holds the memory
  std::shared_ptr<void> owner_;
  unsigned char* data_ = nullptr;
  std::int64_t low_ = 0;   // bytes from `data_` to the first number in memory
  std::int64_t high_ = 0;  // and to behind the last
  dlpack::DataType type_{};
  DType dtype_ = DType::f32;
  std::int64_t item_bytes_ = 4;
  bool read_only_ = false;
  std::vector<std::int64_t> shape_;
  std::vector<std::int64_t> strides_;
};

}  // namespace dive
