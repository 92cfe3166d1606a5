#include "cpu/isa.h"

#include <atomic>
#include <stdexcept>

#include "cpu/x86.h"
#if DIVE_X86
#include <cpuid.h>
#endif

namespace dive::cpu {
namespace {

std::atomic<Isa>& chosen() {
  static std::atomic<Isa> value{usable_isas().back()};
  return value;
}

}  // namespace

CpuWords read_cpu_words() {
  CpuWords words;
#if DIVE_X86
  // by hand and not by __builtin_cpu_supports: what that answers depends on the compiler's runtime
  // library, and some fill its table for no processor or only in part
  unsigned a = 0, b = 0, c = 0, d = 0;
  const unsigned last = __get_cpuid_max(0, nullptr);
  if (last < 1) return words;
  __cpuid(1, a, b, c, d);
  words.leaf1_ecx = c;
  if (last >= 7) {
    __cpuid_count(7, 0, a, b, c, d);
    words.leaf7_ebx = b;
    if (a >= 1) {  // the last subleaf
      __cpuid_count(7, 1, a, b, c, d);
      words.leaf7_1_eax = a;
    }
  }
  if ((words.leaf1_ecx & kOsXsave) != 0) {
    __asm__ volatile("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
    words.xcr0 = a;
  }
#endif
  return words;
}

Isa fastest_isa(const CpuWords& words) {
  const auto all = [](unsigned word, unsigned bits) { return (word & bits) == bits; };
  // xcr0 is unknown, and without OSXSAVE no system saves these registers
  if (!all(words.leaf1_ecx, kOsXsave | kAvx | kFma | kF16c) || !all(words.xcr0, kAvxState) ||
      !all(words.leaf7_ebx, kAvx2)) {
    return Isa::scalar;
  }
  if (!all(words.leaf7_ebx, kAvx512F | kAvx512Dq | kAvx512Bw | kAvx512Vl) ||
      !all(words.xcr0, kAvx512State)) {
    return Isa::avx2;
  }
  return all(words.leaf7_1_eax, kAvx512Bf16) ? Isa::avx512_bf16 : Isa::avx512;
}

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
  static const Isa fastest = fastest_isa(read_cpu_words());
  std::vector<Isa> usable;
  for (const Isa isa : compiled_isas()) {
    if (isa <= fastest) usable.push_back(isa);
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
