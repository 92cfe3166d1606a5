// The dtypes that tensors are stored in, and the conversion of single numbers.
#pragma once

#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define DIVE_HOST_DEVICE __host__ __device__
#else
#define DIVE_HOST_DEVICE
#endif

namespace dive {

enum class DType { f32, bf16, f16 };

constexpr std::int64_t size_of(DType type) { return type == DType::f32 ? 4 : 2; }

constexpr const char* name_of(DType type) {
  return type == DType::f32 ? "float32" : type == DType::bf16 ? "bfloat16" : "float16";
}

struct BFloat16 {
  std::uint16_t bits;
};

struct Half {
  std::uint16_t bits;
};

DIVE_HOST_DEVICE inline std::uint32_t bits_of(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

DIVE_HOST_DEVICE inline float from_bits(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

DIVE_HOST_DEVICE inline float to_float(float value) { return value; }

DIVE_HOST_DEVICE inline float to_float(BFloat16 value) {
  return from_bits(static_cast<std::uint32_t>(value.bits) << 16);
}

DIVE_HOST_DEVICE inline float to_float(Half value) {
#ifdef __CUDA_ARCH__
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(value.bits));
  return wide;
#else
  const std::uint32_t sign = static_cast<std::uint32_t>(value.bits & 0x8000) << 16;
  const std::uint32_t exponent = (value.bits >> 10) & 0x1f;
  const std::uint32_t mantissa = value.bits & 0x3ff;
  if (exponent == 31) return from_bits(sign | 0x7f800000 | (mantissa << 13));
  if (exponent == 0) {  // zero or subnormal: mantissa * 2^-24, exact in float32
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return from_bits(sign | bits_of(magnitude));
  }
  return from_bits(sign | ((exponent + 112) << 23) | (mantissa << 13));
#endif
}

template <class T>
DIVE_HOST_DEVICE T from_float(float value);

template <>
DIVE_HOST_DEVICE inline float from_float<float>(float value) {
  return value;
}

// To the nearest, ties to even; a NaN stays one.
template <>
DIVE_HOST_DEVICE inline BFloat16 from_float<BFloat16>(float value) {
#ifdef __CUDA_ARCH__
  BFloat16 narrow;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(narrow.bits) : "f"(value));
  return narrow;
#else
  const std::uint32_t bits = bits_of(value);
  if ((bits & 0x7fffffff) > 0x7f800000) return {0x7fc0};
  return {static_cast<std::uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
#endif
}

template <>
DIVE_HOST_DEVICE inline Half from_float<Half>(float value) {
#ifdef __CUDA_ARCH__
  Half narrow;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(narrow.bits) : "f"(value));
  return narrow;
#else
  const std::uint32_t bits = bits_of(value);
  const auto sign = static_cast<std::uint16_t>((bits >> 16) & 0x8000);
  const std::uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return {static_cast<std::uint16_t>(sign | 0x7e00)};
  if (magnitude >= 0x477ff000) return {static_cast<std::uint16_t>(sign | 0x7c00)};  // >= 65520
  if (magnitude < 0x38800000) {  // below 2^-14: subnormal
    // adding 0.5 shifts the number to where its last kept bit is float32's last: the FPU rounds
    const float shifted = from_bits(magnitude) + 0.5f;
    return {static_cast<std::uint16_t>(sign | (bits_of(shifted) - 0x3f000000))};
  }
  const std::uint32_t rounded = magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1);
  return {static_cast<std::uint16_t>(sign | (rounded >> 13))};
#endif
}

template <class T>
struct dtype_of;
template <>
struct dtype_of<float> {
  static constexpr DType value = DType::f32;
};
template <>
struct dtype_of<BFloat16> {
  static constexpr DType value = DType::bf16;
};
template <>
struct dtype_of<Half> {
  static constexpr DType value = DType::f16;
};

}  // namespace dive
