/* A small pool of threads that share the items of one call.
 *
 * Training calls every few hundred microseconds, with longer breaks between epochs. So a worker
 * without work first spins for a while, soon yielding its core to other threads, and then sleeps:
 * an idle process uses no CPU. A call offers *seats*; a worker that wakes up takes one. When the
 * caller has done its own items, it withdraws the seats that are left. So a caller waits only for
 * workers that have begun, never for one to wake up.
 */
#define _POSIX_C_SOURCE 200809L
#include "pool.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <time.h>

#include "waiting.h"

#define MAX_WORKERS 255
#define SPIN_NS 1000000
#define YIELD_NS 200000 /* after spinning this long, a worker yields */

static struct {
    /* The call that workers run. Written only while no seat is offered or taken. */
    PoolTask task;
    void *context;
    int64_t num_items;
    _Alignas(64) atomic_int_fast64_t next_item;
    _Alignas(64) atomic_int seats;  /* offered and not yet taken */
    _Alignas(64) atomic_int left;   /* workers that took a seat and have finished */
    _Alignas(64) atomic_uint calls; /* number of calls; idle workers watch it */
    atomic_int sleepers;
    atomic_flag in_use;
    int num_workers;
    pthread_mutex_t mutex;
    pthread_cond_t called;
} pool = {.in_use = ATOMIC_FLAG_INIT,
          .mutex = PTHREAD_MUTEX_INITIALIZER,
          .called = PTHREAD_COND_INITIALIZER};

/* ---------------------------------------------------------------- workers */

static void do_items(void) {
    for (;;) {
        const int64_t item = atomic_fetch_add(&pool.next_item, 1);
        if (item >= pool.num_items) return;
        pool.task(pool.context, item);
    }
}

static bool take_seat(void) {
    int seats = atomic_load(&pool.seats);
    while (seats > 0)
        if (atomic_compare_exchange_weak(&pool.seats, &seats, seats - 1)) return true;
    return false;
}

static bool spin_for_call(unsigned seen) {
    const int64_t began = now_ns();
    int64_t spun = 0;
    do {
        if (spun > YIELD_NS) sched_yield();
        for (int i = 0; i < SPINS_PER_CLOCK; i++) {
            if (atomic_load_explicit(&pool.calls, memory_order_acquire) != seen) return true;
            relax();
        }
        spun = now_ns() - began;
    } while (spun < SPIN_NS);
    return false;
}

static void sleep_for_call(unsigned seen) {
    pthread_mutex_lock(&pool.mutex);
    atomic_fetch_add(&pool.sleepers, 1); /* before reading `calls`: see publish() */
    while (atomic_load(&pool.calls) == seen) pthread_cond_wait(&pool.called, &pool.mutex);
    atomic_fetch_sub(&pool.sleepers, 1);
    pthread_mutex_unlock(&pool.mutex);
}

static void *work(void *unused) {
    (void)unused;
    for (;;) {
        const unsigned seen = atomic_load(&pool.calls);
        while (take_seat()) {
            do_items();
            atomic_fetch_add(&pool.left, 1);
        }
        if (!spin_for_call(seen)) sleep_for_call(seen);
    }
    return NULL;
}

/* Workers block all signals, so that the interpreter's threads get them. */
static bool start_worker(void) {
    sigset_t all, before;
    pthread_t thread;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    const bool started = pthread_create(&thread, NULL, work, NULL) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (started) pthread_detach(thread); /* ends with the process */
    return started;
}

/* ---------------------------------------------------------------- fork */

/* Threads do not survive a fork: the child begins with an empty pool. */
static void forget_workers(void) {
    pool.num_workers = 0;
    atomic_store(&pool.seats, 0);
    atomic_store(&pool.sleepers, 0);
    pthread_mutex_init(&pool.mutex, NULL);
    pthread_cond_init(&pool.called, NULL);
    atomic_flag_clear(&pool.in_use);
}

static void watch_forks(void) { pthread_atfork(NULL, NULL, forget_workers); }

/* ---------------------------------------------------------------- callers */

/* Starts workers until there are `wanted`; returns how many of these there are. */
static int ensure_workers(int64_t num_wanted) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, watch_forks);
    const int wanted = num_wanted < MAX_WORKERS ? (int)num_wanted : MAX_WORKERS;
    while (pool.num_workers < wanted && start_worker()) pool.num_workers++;
    return pool.num_workers < wanted ? pool.num_workers : wanted;
}

/* Offers seats, then wakes sleepers. A worker counts itself as a sleeper before it reads `calls`;
 * this function changes `calls` before it reads `sleepers`: so one of the two sees the other. */
static void publish(int seats) {
    atomic_store(&pool.seats, seats);
    atomic_fetch_add(&pool.calls, 1);
    if (atomic_load(&pool.sleepers) > 0) {
        pthread_mutex_lock(&pool.mutex);
        pthread_cond_broadcast(&pool.called);
        pthread_mutex_unlock(&pool.mutex);
    }
}

static void wait_until_left(int taken) {
    for (int spins = 0; atomic_load(&pool.left) < taken; spins++) {
        if (spins < 4096) relax();
        else sched_yield(); /* more threads than cores: let the worker run */
    }
}

void pool_run(PoolTask task, void *context, int64_t num_items, int64_t num_threads) {
    if (num_threads > num_items) num_threads = num_items;
    if (num_threads <= 1 || atomic_flag_test_and_set(&pool.in_use)) {
        for (int64_t item = 0; item < num_items; item++) task(context, item);
        return;
    }
    const int seats = ensure_workers(num_threads - 1);
    pool.task = task;
    pool.context = context;
    pool.num_items = num_items;
    atomic_store(&pool.next_item, 0);
    atomic_store(&pool.left, 0);
    publish(seats);
    do_items();
    const int taken = seats - atomic_exchange(&pool.seats, 0);
    wait_until_left(taken);
    atomic_flag_clear(&pool.in_use);
}

int pool_num_workers(void) { return pool.num_workers; }
