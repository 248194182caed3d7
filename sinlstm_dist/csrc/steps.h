/* Training steps of the predictor, one after the other in one call: the rows of the pieces, their
 * sum over all processes, gradient descent. */
#ifndef SINLSTM_STEPS_H
#define SINLSTM_STEPS_H

#include "call.h"
#include "gather.h"

/* How far the steps have come. Python keeps it between calls. */
typedef struct {
    int64_t made;    /* steps */
    int64_t number;  /* of the last gather that this process has sent for */
    int64_t is_sent; /* whether this process's rows of the next step are computed, and sent */
    int64_t stop;    /* whether a process asks to stop, after the last step */
} StepsState;

/* Totals, to which those of each step are added, and the loss of the last step that was computed.
 */
typedef struct {
    double loss_sum, correct, samples;
    double last_loss; /* a sample's mean; not finite: this step was not made */
} StepsTotals;

typedef struct {
    Problem problem; /* its samples are those of all steps */
    Pieces pieces;   /* this process's: `sizes` has those of all steps, `rows` is of one */
    int64_t num_steps;
    float *values;   /* all parameters, in the order of a row */
    float *velocity; /* NULL without momentum */
    float lr, momentum;
    bool stop;             /* whether this process is asked to stop */
    int64_t num_rows;      /* that each process sends */
    float *gathered;       /* the rows of all processes; `pieces.rows` if this one is alone */
    const int64_t *places; /* of each piece of the step, among the gathered rows */
    int64_t num_pieces;
    GatherMemory memory; /* `start` is NULL if this process is alone */
    size_t rank;
    int64_t spin_ns, patience_ns;
} Steps;

typedef enum { STEPS_ENDED, STEPS_TIME_IS_UP, STEPS_NO_MEMORY } StepsResult;

/* Makes steps until all are made, or the loss is not finite, or a process asks to stop, or
 * `patience_ns` are over. The steps that are left, with `is_sent` as it is, are for the next call.
 */
StepsResult run_steps(const Kernel *kernel, const Steps *steps, StepsState *state,
                      StepsTotals *totals);

#endif
