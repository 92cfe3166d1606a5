// Which instructions this machine has, and which of the compiled kernels run.
#pragma once

#include <string>
#include <vector>

namespace dive::cpu {

// From the plainest to the fastest; each needs those before it.
enum class Isa { scalar, avx2, avx512, avx512_bf16 };

const char* name_of(Isa isa);

// The paths in this build, plainest first.
std::vector<Isa> compiled_isas();

// Those of them that this machine can run, plainest first.
std::vector<Isa> usable_isas();

// The path in use: the fastest usable one unless `use_isa` chose another.
Isa current_isa();

// Chooses a path by name for the whole process; std::invalid_argument where it cannot run.
void use_isa(const std::string& name);

}  // namespace dive::cpu
