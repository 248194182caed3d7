#define _POSIX_C_SOURCE 200809L
#include "memory.h"

#include <pthread.h>
#include <stdlib.h>

#define CACHE_LINE 64

typedef struct {
    void *memory;
    size_t bytes;
} Buffer;

static pthread_key_t buffers_key;

static void free_buffers(void *pointer) {
    Buffer *buffers = pointer;
    for (int i = 0; i < NUM_MEMORIES; i++) free(buffers[i].memory);
    free(buffers);
}

bool thread_memory_init(void) { return pthread_key_create(&buffers_key, free_buffers) == 0; }

static Buffer *thread_buffers(void) {
    Buffer *buffers = pthread_getspecific(buffers_key);
    if (buffers) return buffers;
    buffers = calloc(NUM_MEMORIES, sizeof *buffers);
    if (buffers && pthread_setspecific(buffers_key, buffers) != 0) {
        free(buffers);
        return NULL;
    }
    return buffers;
}

void *thread_memory(Purpose purpose, size_t bytes) {
    Buffer *buffers = thread_buffers();
    if (!buffers) return NULL;
    Buffer *buffer = &buffers[purpose];
    if (buffer->bytes >= bytes) return buffer->memory;
    free(buffer->memory);
    *buffer = (Buffer){NULL, 0};
    if (posix_memalign(&buffer->memory, CACHE_LINE, bytes) != 0) {
        buffer->memory = NULL;
        return NULL;
    }
    buffer->bytes = bytes;
    return buffer->memory;
}
