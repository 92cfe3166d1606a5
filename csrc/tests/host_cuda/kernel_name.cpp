#include "tests/host_cuda/kernel_name.h"

#include <cxxabi.h>
#include <dlfcn.h>
#include <elf.h>
#include <link.h>

#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <sstream>

namespace dive::cuda::host {
namespace {

std::string readable(const char* symbol) {
  int status = 0;
  char* const name = abi::__cxa_demangle(symbol, nullptr, nullptr, &status);
  std::string text = status == 0 ? name : symbol;
  std::free(name);
  return text;
}

}  // namespace

// Kernels are hidden symbols, which dladdr does not know: the file's full table has them.
std::string name_of_kernel(const void* function) {
  std::ostringstream unknown;
  unknown << "kernel " << function;
  Dl_info info{};
  if (dladdr(function, &info) == 0) return unknown.str();
  std::ifstream file(info.dli_fname, std::ios::binary);
  const std::string image{std::istreambuf_iterator<char>(file), {}};
  if (image.size() < sizeof(ElfW(Ehdr))) return unknown.str();
  const auto* const header = reinterpret_cast<const ElfW(Ehdr)*>(image.data());
  const auto* const sections = reinterpret_cast<const ElfW(Shdr)*>(image.data() + header->e_shoff);
  const auto address = reinterpret_cast<std::uintptr_t>(function);
  const auto base = reinterpret_cast<std::uintptr_t>(info.dli_fbase);
  const std::uintptr_t value = header->e_type == ET_DYN ? address - base : address;
  for (unsigned s = 0; s < header->e_shnum; ++s) {
    if (sections[s].sh_type != SHT_SYMTAB) continue;
    const auto* const symbols =
        reinterpret_cast<const ElfW(Sym)*>(image.data() + sections[s].sh_offset);
    const char* const names = image.data() + sections[sections[s].sh_link].sh_offset;
    for (std::size_t i = 0; i < sections[s].sh_size / sizeof(ElfW(Sym)); ++i) {
      if ((symbols[i].st_info & 0xf) == STT_FUNC && symbols[i].st_value == value) {
        return readable(names + symbols[i].st_name);
      }
    }
  }
  return unknown.str();
}

}  // namespace dive::cuda::host
