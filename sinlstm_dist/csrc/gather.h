/* A gather between the processes of one machine, through memory that all of them have mapped. */
#ifndef SINLSTM_GATHER_H
#define SINLSTM_GATHER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The memory, which begins as zeros. Every process has the same sizes. */
typedef struct {
    char *start; /* gather_memory_bytes, at a multiple of 64 */
    size_t num_processes;
    size_t slot_bytes; /* a multiple of 64: the most that a process sends at once */
} GatherMemory;

size_t gather_memory_bytes(const GatherMemory *g);

/* Sends this process's bytes, at most `slot_bytes`. `number` is that of the gather, from 1. */
void gather_put(const GatherMemory *g, size_t rank, uint32_t number, const void *bytes,
                size_t num_bytes);

/* Waits until all have sent theirs, then copies those of rank 0, rank 1, ... to `out`.
 * Returns false, and copies nothing, if that takes longer than `patience_ns`. It spins for
 * `spin_ns` before it sleeps. */
bool gather_take(const GatherMemory *g, uint32_t number, void *out, size_t num_bytes,
                 int64_t spin_ns, int64_t patience_ns);

#endif
