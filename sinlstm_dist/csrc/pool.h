/* A small pool of threads that share the items of one call. */
#ifndef SINLSTM_POOL_H
#define SINLSTM_POOL_H

#include <stdint.h>

typedef void (*PoolTask)(void *context, int64_t item);

/* Runs task(context, item) once for each item from 0 to num_items - 1, in any order, on at most
 * num_threads threads, including the caller's. Returns when all are done. If another thread is
 * using the pool, the caller does its items alone. Starts no thread if num_threads <= 1. */
void pool_run(PoolTask task, void *context, int64_t num_items, int64_t num_threads);

/* Number of threads that the pool has started in this process. */
int pool_num_workers(void);

#endif
