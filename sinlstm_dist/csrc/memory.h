/* Memory that each thread keeps between calls, so that a training loop allocates nothing. */
#ifndef SINLSTM_MEMORY_H
#define SINLSTM_MEMORY_H

#include <stdbool.h>
#include <stddef.h>

/* What a thread may need at the same time: an item's scratch, the call's packed weights and
 * results, and the sizes of its pieces. */
typedef enum { ITEM_MEMORY, CALL_MEMORY, PIECES_MEMORY, NUM_MEMORIES } Purpose;

/* Call once, before the first `thread_memory`. Returns false if the system has no more keys. */
bool thread_memory_init(void);

/* At least `bytes` (not 0), aligned to a cache line; NULL if there is no memory. The content is
 * lost when the same thread asks for more. Freed when the thread ends. */
void *thread_memory(Purpose purpose, size_t bytes);

#endif
