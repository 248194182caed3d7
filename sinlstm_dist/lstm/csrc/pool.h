/* A small pool of threads that share out the items of one call. */
#ifndef SINLSTM_POOL_H
#define SINLSTM_POOL_H

#include <stdint.h>

typedef void (*PoolTask)(void *context, int64_t item);

/* Run task(context, 0 .. num_items - 1), each once, in any order, on at most num_threads threads,
 * the caller's among them. Returns when all are done. A caller that finds the pool in use by
 * another thread does its items alone. Starts no thread for num_threads <= 1. */
void pool_run(PoolTask task, void *context, int64_t num_items, int num_threads);

/* Number of threads that the pool has started in this process. */
int pool_num_workers(void);

#endif
