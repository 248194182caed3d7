/* A gather between the processes of one machine, through memory that all of them have mapped. */
#ifndef SINLSTM_GATHER_H
#define SINLSTM_GATHER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The memory, which begins as zeros. Every process has the same sizes. */
typedef struct {
    char *memory; /* gather_memory_bytes, at a multiple of 64 */
    size_t num_processes;
    size_t slot; /* bytes, a multiple of 64: the most that a process sends at once */
} Gather;

size_t gather_memory_bytes(const Gather *g);

/* Sends this process's bytes, at most `slot`. `number` is that of the gather, from 1. */
void gather_put(const Gather *g, size_t rank, uint32_t number, const void *bytes, size_t count);

/* Waits until all have sent theirs, then copies those of rank 0, rank 1, ... to `out`.
 * Returns false, and copies nothing, if that takes longer than `patience_ns`. It spins for
 * `spin_ns` before it sleeps. */
bool gather_take(const Gather *g, uint32_t number, void *out, size_t count, int64_t spin_ns,
                 int64_t patience_ns);

#endif
