// The instruction sets of this machine, and the choice among the compiled kernels.
#pragma once

#include <string>
#include <vector>

namespace dive::cpu {

// From the plainest to the fastest; each needs those before it.
enum class Isa { scalar, avx2, avx512, avx512_bf16 };

const char* name_of(Isa isa);

// The words of CPUID and XGETBV on this machine; all 0 where it is not x86.
struct CpuWords {
  unsigned leaf1_ecx = 0;
  unsigned leaf7_ebx = 0;
  unsigned leaf7_1_eax = 0;
  unsigned xcr0 = 0;  // the registers that the system saves for a thread
};
CpuWords read_cpu_words();

// Bits of these words.
constexpr unsigned kFma = 1u << 12, kOsXsave = 1u << 27, kAvx = 1u << 28, kF16c = 1u << 29;
constexpr unsigned kAvx2 = 1u << 5, kAvx512F = 1u << 16, kAvx512Dq = 1u << 17;
constexpr unsigned kAvx512Bw = 1u << 30, kAvx512Vl = 1u << 31;
constexpr unsigned kAvx512Bf16 = 1u << 5;
constexpr unsigned kAvxState = 0x6;      // xmm and ymm
constexpr unsigned kAvx512State = 0xe6;  // and masks, the upper halves, zmm16 to zmm31

// The fastest path for which both the processor and the system have all that its kernels use.
Isa fastest_isa(const CpuWords& words);

// The paths in this build, plainest first.
std::vector<Isa> compiled_isas();

// Those of them that this machine can run, plainest first.
std::vector<Isa> usable_isas();

// The path in use: the fastest usable one unless `use_isa` chose another.
Isa current_isa();

// Chooses a path by name for the whole process; std::invalid_argument where it cannot run.
void use_isa(const std::string& name);

}  // namespace dive::cpu
