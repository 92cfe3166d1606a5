#include "python/tensor_argument.h"

#include <algorithm>
#include <utility>

namespace py = pybind11;

namespace dive {
namespace {

constexpr std::int64_t kMostBytes = std::int64_t{1} << 47;  // what a process can address
constexpr std::int32_t kMostDimensions = 64;
constexpr std::uintptr_t kLeastAddress = 4096;

// An attribute, or nothing where there is none; any other error than that is raised.
py::object attribute(py::handle object, const char* name) {
  PyObject* const found = PyObject_GetAttrString(object.ptr(), name);
  if (found != nullptr) return py::reinterpret_steal<py::object>(found);
  if (PyErr_ExceptionMatches(PyExc_AttributeError) == 0) throw py::error_already_set();
  PyErr_Clear();
  return {};
}

// The exchange table of a type, or null. Reading the attribute costs more than everything else
// here, and a program uses one or two tensor types: the last two are remembered (with a reference
// to the type, so that its address cannot come to mean another).
const dlpack::ExchangeApi* exchange_table(py::handle object) {
  struct Entry {
    PyObject* type = nullptr;
    const dlpack::ExchangeApi* table = nullptr;
  };
  static Entry known[2];
  auto* const type = reinterpret_cast<PyObject*>(Py_TYPE(object.ptr()));
  for (const Entry& entry : known) {
    if (entry.type == type) return entry.table;
  }
  const dlpack::ExchangeApi* table = nullptr;
  const py::object capsule = attribute(type, "__dlpack_c_exchange_api__");
  if (capsule && PyCapsule_IsValid(capsule.ptr(), "dlpack_exchange_api") != 0) {
    auto* header = static_cast<dlpack::ExchangeHeader*>(
        PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
    while (header != nullptr && header->version.major != 1) header = header->previous;
    table = reinterpret_cast<const dlpack::ExchangeApi*>(header);
    if (table != nullptr && table->tensor_from_object == nullptr) table = nullptr;
  }
  PyObject* const forgotten = known[1].type;
  known[1] = known[0];
  Py_INCREF(type);
  known[0] = {type, table};
  Py_XDECREF(forgotten);  // last: a type that dies may run anything
  return table;
}

std::string device_text(const dlpack::Device& device) {
  switch (device.type) {
    case dlpack::kCpu: return "cpu";
    case dlpack::kCuda:
    case dlpack::kCudaManaged: return "cuda:" + std::to_string(device.id);
    case dlpack::kCudaHost: return "pinned host memory";
    default: return "device type " + std::to_string(device.type);
  }
}

std::string type_name(py::handle object) { return Py_TYPE(object.ptr())->tp_name; }

// The message of an error; what is no Exception, as KeyboardInterrupt, or a lack of memory, goes
// on.
std::string message_of(py::error_already_set& error) {
  if (!error.matches(PyExc_Exception) || error.matches(PyExc_MemoryError)) throw error;
  const py::object text = py::reinterpret_steal<py::object>(PyObject_Str(error.value().ptr()));
  if (text) return text.cast<std::string>();
  PyErr_Clear();
  return type_name(error.value());
}

}  // namespace

TensorArgument::TensorArgument(std::string name, py::handle object, dlpack::Device device)
    : name_(std::move(name)), device_(device), object_(py::reinterpret_borrow<py::object>(object)) {
  if (!take_by_table(object)) take_by_capsule(object);
}

bool TensorArgument::take_by_table(py::handle object) {
  table_ = exchange_table(object);
  if (table_ == nullptr) return false;
  dlpack::Tensor tensor{};
  if (table_->tensor_from_object(object.ptr(), &tensor) != 0) {
    py::error_already_set error;
    fail("cannot be read: " + message_of(error));
  }
  read(tensor);
  return true;
}

void TensorArgument::check_unmoved(const char* owner) const {
  if (table_ == nullptr) return;
  dlpack::Tensor tensor{};
  if (table_->tensor_from_object(object_.ptr(), &tensor) != 0) {
    py::error_already_set error;
    fail("cannot be read again: " + message_of(error));
  }
  const auto* const data = static_cast<unsigned char*>(tensor.data);
  bool same = (data == nullptr ? nullptr : data + tensor.byte_offset) == data_;
  same =
      same && tensor.ndim == dimensions() &&
      std::equal(shape_.begin(), shape_.end(), tensor.shape) &&
      (tensor.strides == nullptr || std::equal(strides_.begin(), strides_.end(), tensor.strides));
  if (!same) fail("was moved, freed or resized after " + std::string(owner) + " took it");
}

void TensorArgument::want_storage() const {
  if (table_ == nullptr || numel() == 0) return;
  std::uintptr_t first = 0;
  std::int64_t bytes = 0;
  try {
    const py::object storage_of = attribute(object_, "untyped_storage");
    if (!storage_of) return;
    const py::object storage = storage_of();
    first = storage.attr("data_ptr")().cast<std::uintptr_t>();
    bytes = storage.attr("nbytes")().cast<std::int64_t>();
  } catch (py::error_already_set& error) {
    fail("cannot be read: " + message_of(error));
  } catch (const py::cast_error&) {
    fail("has a storage that does not tell its size");
  }
  const auto data = reinterpret_cast<std::uintptr_t>(data_);
  const auto low = static_cast<std::int64_t>(data - first) + low_;
  if (low < 0 || low + (high_ - low_) > bytes) {
    fail("has shape " + shape_text() + " over a storage of " + std::to_string(bytes) +
         " bytes, want one that holds it");
  }
}

void TensorArgument::take_by_capsule(py::handle object) {
  py::object capsule;
  try {
    const py::object export_it = attribute(object, "__dlpack__");
    if (!export_it) {
      fail("is a " + type_name(object) + ", want a tensor (an object with __dlpack__)");
    }
    try {
      capsule = export_it(py::arg("max_version") = py::make_tuple(1, 3));
    } catch (py::error_already_set& error) {
      if (!error.matches(PyExc_TypeError)) throw;
      capsule = export_it();  // a producer from before version 1
    }
  } catch (py::error_already_set& error) {
    fail("cannot be read: " + message_of(error));
  }
  // A capsule once taken is renamed, so that nobody takes it again; we then call its deleter.
  if (PyCapsule_IsValid(capsule.ptr(), "dltensor_versioned") != 0) {
    auto* const managed = static_cast<dlpack::ManagedTensorVersioned*>(
        PyCapsule_GetPointer(capsule.ptr(), "dltensor_versioned"));
    PyCapsule_SetName(capsule.ptr(), "used_dltensor_versioned");
    owner_ = std::shared_ptr<void>(managed, [managed](void*) {
      if (managed->deleter != nullptr) managed->deleter(managed);
    });
    if (managed->version.major != 1) {
      fail("comes by DLPack " + std::to_string(managed->version.major) + ", want version 1");
    }
    read_only_ = (managed->flags & dlpack::kReadOnly) != 0;
    read(managed->tensor);
  } else if (PyCapsule_IsValid(capsule.ptr(), "dltensor") != 0) {
    auto* const managed =
        static_cast<dlpack::ManagedTensor*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor"));
    PyCapsule_SetName(capsule.ptr(), "used_dltensor");
    owner_ = std::shared_ptr<void>(managed, [managed](void*) {
      if (managed->deleter != nullptr) managed->deleter(managed);
    });
    read(managed->tensor);
  } else {
    fail("has a __dlpack__ that returned a " + type_name(capsule) +
         ", want a fresh DLPack capsule");
  }
}

void TensorArgument::read(const dlpack::Tensor& tensor) {
  const bool same = tensor.device.type == device_.type && tensor.device.id == device_.id;
  const bool of_host =
      tensor.device.type == dlpack::kCpu || tensor.device.type == dlpack::kCudaHost;
  if (!same && !(device_.type == dlpack::kCpu && of_host)) {
    fail("is on " + device_text(tensor.device) + ", want " + device_text(device_));
  }
  type_ = tensor.dtype;
  item_bytes_ = (static_cast<std::int64_t>(type_.bits) * type_.lanes + 7) / 8;
  if (tensor.ndim < 0 || (tensor.ndim > 0 && tensor.shape == nullptr)) fail("has no shape");
  if (tensor.ndim > kMostDimensions) {
    fail("has " + std::to_string(tensor.ndim) + " dimensions, want at most " +
         std::to_string(kMostDimensions));
  }
  const auto dimensions = static_cast<std::size_t>(tensor.ndim);
  shape_.assign(tensor.shape, tensor.shape + dimensions);
  if (tensor.strides != nullptr) {
    strides_.assign(tensor.strides, tensor.strides + dimensions);
  } else {
    strides_.assign(dimensions, 1);
  }
  check_extent();
  if (tensor.strides == nullptr) {
    for (std::size_t i = dimensions; i-- > 1;) strides_[i - 1] = strides_[i] * shape_[i];
    high_ = numel() * item_bytes_;
  }
  const auto address = reinterpret_cast<std::uintptr_t>(tensor.data);
  if (tensor.data != nullptr && tensor.byte_offset < static_cast<std::uint64_t>(kMostBytes)) {
    data_ = static_cast<unsigned char*>(tensor.data) + tensor.byte_offset;
  } else if (numel() > 0 && tensor.data == nullptr) {
    fail("has shape " + shape_text() + " and no memory (freed storage?), want one that holds data");
  } else if (tensor.data != nullptr) {
    fail("begins " + std::to_string(tensor.byte_offset) + " bytes behind its memory's start");
  }
  if (numel() > 0 && address < kLeastAddress) fail("has an address that no memory has");
  if (item_bytes_ > 0 && reinterpret_cast<std::uintptr_t>(data_) % item_bytes_ != 0) {
    fail("starts at an address that is no multiple of its " + std::to_string(item_bytes_) +
         "-byte numbers, want an aligned tensor");
  }
}

// Sizes and strides of which every product below fits; else a tensor is refused that no memory has.
void TensorArgument::check_extent() {
  long double bytes = item_bytes_, low = 0, high = 0;
  bool empty = false;
  for (std::size_t i = 0; i < shape_.size(); ++i) {
    if (shape_[i] < 0) fail("has shape " + shape_text() + ", want no negative size");
    empty = empty || shape_[i] == 0;
    bytes *= static_cast<long double>(std::max<std::int64_t>(shape_[i], 1));
    const long double reach = static_cast<long double>(shape_[i] - 1) *
                              static_cast<long double>(strides_[i]) *
                              static_cast<long double>(item_bytes_);
    if (shape_[i] > 1) (reach < 0 ? low : high) += reach;
  }
  const auto most = static_cast<long double>(kMostBytes);
  if (bytes > most || (!empty && (high > most || low < -most))) {
    fail("has shape " + shape_text() + ", which no memory holds");
  }
  if (empty) return;
  low_ = static_cast<std::int64_t>(low);
  high_ = static_cast<std::int64_t>(high) + item_bytes_;
}

std::int64_t TensorArgument::numel() const {
  std::int64_t count = 1;
  for (const std::int64_t size : shape_) count *= size;
  return count;
}

void TensorArgument::want_dtype(std::initializer_list<DType> wanted) {
  const auto is = [this](std::uint8_t code, std::uint8_t bits) {
    return type_.code == code && type_.bits == bits && type_.lanes == 1;
  };
  std::string names;
  for (const DType type : wanted) {
    const std::uint8_t code = type == DType::bf16 ? dlpack::kBfloat : dlpack::kFloat;
    if (is(code, static_cast<std::uint8_t>(8 * size_of(type)))) {
      dtype_ = type;
      return;
    }
    names += (names.empty() ? "" : " or ") + std::string(name_of(type));
  }
  fail("has dtype " + dtype_text() + ", want " + names);
}

void TensorArgument::want_int64() {
  if (type_.code != dlpack::kInt || type_.bits != 64 || type_.lanes != 1) {
    fail("has dtype " + dtype_text() + ", want int64");
  }
}

void TensorArgument::want_shape(std::initializer_list<std::int64_t> sizes,
                                const std::string& wanted) const {
  bool good = sizes.size() == shape_.size();
  std::string text = "[";
  std::size_t i = 0;
  for (const std::int64_t size : sizes) {
    good = good && (size < 0 || shape_[i] == size);
    text += (i == 0 ? "" : ", ") + (size < 0 ? std::string("any") : std::to_string(size));
    ++i;
  }
  if (!good) fail("has shape " + shape_text() + ", want " + text + "], that is " + wanted);
}

void TensorArgument::want_rows() const {
  if (numel() == 0 || shape_.empty()) return;
  const std::size_t last = shape_.size() - 1;
  bool good = strides_[last] == 1 || shape_[last] == 1;
  if (last == 1 && shape_[0] > 1) good = good && strides_[0] >= shape_[1];
  if (good) return;
  std::string text;
  for (const std::int64_t stride : strides_) {
    text += (text.empty() ? "" : ", ") + std::to_string(stride);
  }
  fail("has shape " + shape_text() + " with strides [" + text +
       "], want rows whose numbers lie one after another and that do not overlap (.contiguous())");
}

void TensorArgument::want_writable() const {
  if (read_only_) fail("is read-only, want a tensor that can be written");
}

bool TensorArgument::overlaps(const TensorArgument& other) const {
  if (numel() == 0 || other.numel() == 0) return false;
  const auto range = [](const TensorArgument& tensor) {
    const auto first = reinterpret_cast<std::intptr_t>(tensor.data_);
    return std::pair(first + tensor.low_, first + tensor.high_);
  };
  const auto [low, high] = range(*this);
  const auto [other_low, other_high] = range(other);
  return low < other_high && other_low < high;
}

void TensorArgument::fail(const std::string& got_and_wanted) const {
  throw py::value_error(name_ + " " + got_and_wanted);
}

std::string TensorArgument::shape_text() const {
  std::string text = "[";
  for (std::size_t i = 0; i < shape_.size(); ++i) {
    text += (i == 0 ? "" : ", ") + std::to_string(shape_[i]);
  }
  return text + "]";
}

std::string TensorArgument::dtype_text() const {
  const std::string bits = std::to_string(type_.bits);
  switch (type_.code) {
    case dlpack::kInt: return "int" + bits;
    case dlpack::kUInt: return "uint" + bits;
    case dlpack::kFloat: return "float" + bits;
    case dlpack::kBfloat: return "bfloat" + bits;
    case dlpack::kComplex: return "complex" + bits;
    case dlpack::kBool: return "bool";
    default: return "DLPack type " + std::to_string(type_.code) + " of " + bits + " bits";
  }
}

}  // namespace dive
