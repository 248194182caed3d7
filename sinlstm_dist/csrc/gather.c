/* The memory has a line for each process, then two buffers with a slot for each process.
 *
 * A process writes its bytes to its slot, then the gather's number to its line. Gathers use the
 * buffers in turn: who sends for gather n + 2 has seen that all have sent for n + 1, so all have
 * read the buffer of gather n. Nothing is locked: a process that ends, at any instant, leaves
 * nothing behind but a number that does not grow.
 *
 * Sleeping: Drepper: Futexes Are Tricky (2011).
 */
#define _GNU_SOURCE
#include "gather.h"

#include <limits.h>
#include <sched.h>
#include <stdatomic.h>
#include <string.h>

#include "waiting.h"

typedef struct {
    _Alignas(64) _Atomic uint32_t sent; /* the number of the last gather that it has sent for */
    _Atomic uint32_t sleepers;          /* processes that sleep until it sends */
} Line;

static Line *line(const GatherMemory *g, size_t rank) { return (Line *)g->start + rank; }

static char *slot(const GatherMemory *g, size_t rank, uint32_t number) {
    const size_t buffer = number % 2;
    return (char *)line(g, g->num_processes) + (buffer * g->num_processes + rank) * g->slot_bytes;
}

size_t gather_memory_bytes(const GatherMemory *g) {
    return g->num_processes * (sizeof(Line) + 2 * g->slot_bytes);
}

static bool has_sent(Line *l, uint32_t number) {
    return (int32_t)(atomic_load(&l->sent) - number) >= 0; /* also after 2**32 gathers */
}

/* ---------------------------------------------------------------- sleeping */

#ifdef __linux__
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

static void wake(Line *l) { syscall(SYS_futex, &l->sent, FUTEX_WAKE, INT_MAX, NULL, NULL, 0); }

/* Until `sent` is not `seen`, a signal comes or time is up. */
static void sleep_while(Line *l, uint32_t seen, int64_t at_most_ns) {
    const struct timespec t = {at_most_ns / 1000000000, at_most_ns % 1000000000};
    syscall(SYS_futex, &l->sent, FUTEX_WAIT, seen, &t, NULL, 0);
}
#else
static void wake(Line *l) { (void)l; }

static void sleep_while(Line *l, uint32_t seen, int64_t at_most_ns) {
    (void)l, (void)seen, (void)at_most_ns;
    sched_yield();
}
#endif

static void sleep_until_sent(Line *l, uint32_t number, int64_t at_most_ns) {
    atomic_fetch_add(&l->sleepers, 1); /* before the look: the sender looks in the other order */
    const uint32_t seen = atomic_load(&l->sent);
    if ((int32_t)(seen - number) < 0) sleep_while(l, seen, at_most_ns);
    atomic_fetch_sub(&l->sleepers, 1);
}

/* ---------------------------------------------------------------- the gather */

void gather_put(const GatherMemory *g, size_t rank, uint32_t number, const void *bytes,
                size_t num_bytes) {
    memcpy(slot(g, rank, number), bytes, num_bytes);
    Line *l = line(g, rank);
    atomic_store(&l->sent, number);
    if (atomic_load(&l->sleepers)) wake(l);
}

static bool spin_until_sent(Line *l, uint32_t number, int64_t until_ns) {
    do {
        for (int i = 0; i < SPINS_PER_CLOCK; i++) {
            if (has_sent(l, number)) return true;
            relax();
        }
    } while (now_ns() < until_ns);
    return false;
}

bool gather_take(const GatherMemory *g, uint32_t number, void *out, size_t num_bytes,
                 int64_t spin_ns, int64_t patience_ns) {
    const int64_t began = now_ns();
    for (size_t rank = 0; rank < g->num_processes; rank++) {
        Line *l = line(g, rank);
        if (has_sent(l, number) || spin_until_sent(l, number, began + spin_ns)) continue;
        for (int64_t left; !has_sent(l, number); sleep_until_sent(l, number, left))
            if ((left = began + patience_ns - now_ns()) <= 0) return false;
    }
    for (size_t rank = 0; rank < g->num_processes; rank++)
        memcpy((char *)out + rank * num_bytes, slot(g, rank, number), num_bytes);
    return true;
}
