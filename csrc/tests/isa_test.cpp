// Which path is taken for processors and systems that are not here.
#include "cpu/isa.h"

#include <cstdio>
#include <string>

using namespace dive::cpu;

namespace {

int cases = 0, failures = 0;

void expect(const char* what, const CpuWords& words, Isa want) {
  ++cases;
  const Isa got = fastest_isa(words);
  if (got == want) return;
  ++failures;
  std::printf("%s: got %s, want %s\n", what, name_of(got), name_of(want));
}

}  // namespace

int main() {
  CpuWords all;
  all.leaf1_ecx = kFma | kOsXsave | kAvx | kF16c;
  all.leaf7_ebx = kAvx2 | kAvx512F | kAvx512Dq | kAvx512Bw | kAvx512Vl;
  all.leaf7_1_eax = kAvx512Bf16;
  all.xcr0 = 0xe7;
  expect("everything", all, Isa::avx512_bf16);
  expect("nothing", CpuWords{}, Isa::scalar);

  const auto without = [&](unsigned CpuWords::* word, unsigned bits) {
    CpuWords words = all;
    words.*word &= ~bits;
    return words;
  };
  for (const unsigned bit : {kFma, kOsXsave, kAvx, kF16c}) {
    expect("a bit of leaf 1", without(&CpuWords::leaf1_ecx, bit), Isa::scalar);
  }
  expect("no avx2", without(&CpuWords::leaf7_ebx, kAvx2), Isa::scalar);
  for (const unsigned bit : {kAvx512F, kAvx512Dq, kAvx512Bw, kAvx512Vl}) {
    expect("a part of avx512", without(&CpuWords::leaf7_ebx, bit), Isa::avx2);
  }
  expect("no bfloat16", without(&CpuWords::leaf7_1_eax, kAvx512Bf16), Isa::avx512);
  for (const unsigned bit : {0x2u, 0x4u}) {
    expect("the system saves no ymm", without(&CpuWords::xcr0, bit), Isa::scalar);
  }
  for (const unsigned bit : {0x20u, 0x40u, 0x80u}) {
    expect("the system saves no zmm", without(&CpuWords::xcr0, bit), Isa::avx2);
  }
  const auto usable = usable_isas();
  std::string names;
  for (const Isa isa : usable) names += std::string(names.empty() ? "" : " ") + name_of(isa);
  std::printf("this machine: %s\n%d cases, %d failures\n", names.c_str(), cases, failures);
  return failures == 0 ? 0 : 1;
}
