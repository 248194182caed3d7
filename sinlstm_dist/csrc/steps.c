/* The arithmetic is that of tree.py, gradient.py and optim.py, operation by operation. Other models
 * use those files, and tests/test_stepping.py compares both. Sum and descent run in the calling
 * thread's float mode, as numpy's do.
 */
#define _POSIX_C_SOURCE 200809L
#include "steps.h"

#include <math.h>

#include "waiting.h"

static int64_t row_floats(const Steps *s) { return s->pieces.row_stride; }

static int64_t num_values(const Steps *s) { return row_floats(s) - NUM_TOTALS - 1; }

static int64_t samples_in(const int64_t *sizes, int64_t count) {
    int64_t samples = 0;
    for (int64_t v = 0; v < count; v++) samples += sizes[v];
    return samples;
}

/* Computes this process's rows of a step, which begins at sample `first` of the call. */
static bool compute_rows(const Kernel *kernel, const Steps *s, const int64_t *sizes,
                         int64_t first) {
    Problem p = s->problem;
    Pieces pieces = s->pieces;
    p.num_samples = samples_in(sizes, pieces.count);
    if (p.num_samples) { /* else they may be NULL */
        p.inputs.data += first * p.inputs.sample_stride;
        p.targets.data += first * p.targets.sample_stride;
    }
    pieces.sizes = sizes;
    pieces.num_items = 0;
    for (int64_t v = 0; v < pieces.count; v++) pieces.num_items += items_in(sizes[v]);
    if (!run_predictor(kernel, &p, &pieces)) return false;
    for (int64_t v = 0; v < pieces.count; v++) pieces.rows[(v + 1) * row_floats(s) - 1] = s->stop;
    return true;
}

/* Adds the rows of all pieces along the tree, in place; returns the sum. */
static const float *add_rows(const Steps *s) {
    const int64_t n = row_floats(s);
    for (int64_t apart = 1; apart < s->num_pieces; apart *= 2)
        for (int64_t v = 0; v + apart < s->num_pieces; v += 2 * apart) {
            float *left = s->gathered + s->places[v] * n;
            const float *right = s->gathered + s->places[v + apart] * n;
            for (int64_t i = 0; i < n; i++) left[i] += right[i];
        }
    return s->gathered + s->places[0] * n;
}

static void descend(const Steps *s, const float *gradient, float num_samples) {
    for (int64_t i = 0; i < num_values(s); i++) {
        float change = gradient[i] / num_samples;
        if (s->velocity) {
            s->velocity[i] *= s->momentum;
            change = s->velocity[i] += change;
        }
        s->values[i] -= s->lr * change;
    }
}

StepsResult run_steps(const Kernel *kernel, const Steps *s, StepsState *state,
                      StepsTotals *totals) {
    const int64_t until_ns = now_ns() + s->patience_ns;
    const size_t num_bytes = s->num_rows * row_floats(s) * sizeof(float);
    const int64_t *sizes = s->pieces.sizes;
    for (int64_t first = 0; state->made < s->num_steps; sizes += s->pieces.count) {
        if (!state->is_sent) {
            if (!compute_rows(kernel, s, sizes, first)) return STEPS_NO_MEMORY;
            if (s->memory.start) /* gathers are numbered modulo 2**32 */
                gather_put(&s->memory, s->rank, (uint32_t)++state->number, s->pieces.rows,
                           num_bytes);
            state->is_sent = true;
        }
        if (s->memory.start && !gather_take(&s->memory, (uint32_t)state->number, s->gathered,
                                            num_bytes, s->spin_ns, until_ns - now_ns()))
            return STEPS_TIME_IS_UP;
        state->is_sent = false;
        const float *total = add_rows(s), *known = total + num_values(s);
        state->stop = known[NUM_TOTALS] > 0;
        totals->last_loss = (double)known[0] / known[2];
        if (!isfinite(totals->last_loss)) return STEPS_ENDED;
        descend(s, total, known[2]);
        totals->loss_sum += known[0];
        totals->correct += known[1];
        totals->samples += known[2];
        state->made++;
        first += samples_in(sizes, s->pieces.count);
        if (state->stop) return STEPS_ENDED;
        if (now_ns() >= until_ns) return STEPS_TIME_IS_UP;
    }
    return STEPS_ENDED;
}
