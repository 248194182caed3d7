/* AVX2 and FMA: a vector of 16 samples is two registers.
 * The target is set here and not by a flag, so that the package's other code runs anywhere. */
#if defined(__x86_64__)
#include <immintrin.h>
#include <stdint.h>
#include <string.h>
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif
#define ISA_AVX2
#define KERNEL kernel_avx2
#define KERNEL_NAME "avx2"
#include "block.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
