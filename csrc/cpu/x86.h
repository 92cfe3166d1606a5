// Whether the x86 vector kernels are part of this build.
#pragma once

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define DIVE_X86 1
#else
#define DIVE_X86 0
#endif
