// The public DLPack ABI, version 1.x: how tensors of other libraries reach this extension.
//
// Only what this extension reads is declared here. Layouts and numbers are those of the DLPack
// specification and must not be changed; the static_asserts hold them on 64-bit machines.
#pragma once

#include <cstddef>
#include <cstdint>

namespace dive::dlpack {

enum DeviceType : std::int32_t { kCpu = 1, kCuda = 2, kCudaHost = 3, kCudaManaged = 13 };

enum TypeCode : std::uint8_t {
  kInt = 0,
  kUInt = 1,
  kFloat = 2,
  kBfloat = 4,
  kComplex = 5,
  kBool = 6
};

struct Version {
  std::uint32_t major;
  std::uint32_t minor;
};

struct Device {
  std::int32_t type;
  std::int32_t id;
};

struct DataType {
  std::uint8_t code;
  std::uint8_t bits;
  std::uint16_t lanes;
};

struct Tensor {
  void* data;
  Device device;
  std::int32_t ndim;
  DataType dtype;
  std::int64_t* shape;
  std::int64_t* strides;  // in elements; may be null before version 1.2: rows one after another
  std::uint64_t byte_offset;
};

// What a capsule named "dltensor" holds.
struct ManagedTensor {
  Tensor tensor;
  void* context;
  void (*deleter)(ManagedTensor* self);
};

constexpr std::uint64_t kReadOnly = 1;

// What a capsule named "dltensor_versioned" holds.
struct ManagedTensorVersioned {
  Version version;
  void* context;
  void (*deleter)(ManagedTensorVersioned* self);
  std::uint64_t flags;
  Tensor tensor;
};

// The exchange table of version 1.3 that a tensor's type carries as `__dlpack_c_exchange_api__`.
struct ExchangeHeader {
  Version version;
  ExchangeHeader* previous;
};

struct ExchangeApi {
  ExchangeHeader header;
  int (*allocate)(Tensor*, ManagedTensorVersioned**, void*,
                  void (*)(void*, const char*, const char*));
  int (*managed_from_object)(void* object, ManagedTensorVersioned** out);
  int (*managed_to_object)(ManagedTensorVersioned* tensor, void** out);
  // Fills a tensor that is valid only while the object lives; may be null.
  int (*tensor_from_object)(void* object, Tensor* out);
  int (*current_work_stream)(std::int32_t device_type, std::int32_t device_id, void** out);
};

static_assert(sizeof(void*) != 8 || sizeof(Tensor) == 48);
static_assert(sizeof(void*) != 8 || offsetof(Tensor, shape) == 24);
static_assert(sizeof(void*) != 8 || offsetof(ManagedTensorVersioned, tensor) == 32);
static_assert(sizeof(void*) != 8 || offsetof(ExchangeApi, current_work_stream) == 48);

}  // namespace dive::dlpack
