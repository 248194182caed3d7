/* AVX-512F: a vector of 16 samples is one register.
 * The target is set here and not by a flag, so that the package's other code runs anywhere. */
#if defined(__x86_64__)
#include <immintrin.h>
#include <stdint.h>
#include <string.h>
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx2,fma")
#endif
#define ISA_AVX512
#define KERNEL kernel_avx512
#define KERNEL_NAME "avx512"
#include "block.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
