#include "cpu/isa.h"

#include <algorithm>
#include <atomic>
#include <stdexcept>

#include "cpu/x86.h"
#if DIVE_X86
#include <cpuid.h>
#endif

namespace dive::cpu {
namespace {

bool machine_has(Isa isa) {
  if (isa == Isa::scalar) return true;
#if DIVE_X86
  __builtin_cpu_init();
  unsigned a = 0, b = 0, c = 0, d = 0;
  const bool f16c = __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
  if (!f16c || !__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return false;
  if (isa == Isa::avx2) return true;
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512dq")) {
    return false;
  }
  if (isa == Isa::avx512) return true;
  return __builtin_cpu_supports("avx512bf16") != 0;
#else
  return false;
#endif
}

std::atomic<Isa>& chosen() {
  static std::atomic<Isa> value{usable_isas().back()};
  return value;
}

}  // namespace

const char* name_of(Isa isa) {
  switch (isa) {
    case Isa::scalar: return "scalar";
    case Isa::avx2: return "avx2";
    case Isa::avx512: return "avx512";
    case Isa::avx512_bf16: return "avx512_bf16";
  }
  return "?";
}

std::vector<Isa> compiled_isas() {
#if DIVE_X86
  return {Isa::scalar, Isa::avx2, Isa::avx512, Isa::avx512_bf16};
#else
  return {Isa::scalar};
#endif
}

std::vector<Isa> usable_isas() {
  std::vector<Isa> usable;
  for (const Isa isa : compiled_isas()) {
    if (machine_has(isa)) usable.push_back(isa);
  }
  return usable;
}

Isa current_isa() { return chosen().load(std::memory_order_relaxed); }

void use_isa(const std::string& name) {
  std::string names;
  for (const Isa isa : usable_isas()) {
    if (name == name_of(isa)) {
      chosen().store(isa, std::memory_order_relaxed);
      return;
    }
    names += (names.empty() ? "" : ", ") + std::string(name_of(isa));
  }
  throw std::invalid_argument("use_isa: name is '" + name + "', this machine can run " + names);
}

}  // namespace dive::cpu
