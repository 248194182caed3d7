/* What waits in a loop: the clock, and a hint to the core that it is such a loop. */
#ifndef SINLSTM_WAITING_H
#define SINLSTM_WAITING_H

#include <stdint.h>
#include <time.h>

#define SPINS_PER_CLOCK 32 /* reading the clock takes time */

static inline void relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

static inline int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

#endif
