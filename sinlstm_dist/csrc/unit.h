/* One unit in one step, after its gates' nonlinearity: the arithmetic that CPU and GPU share. */
#ifndef SINLSTM_UNIT_H
#define SINLSTM_UNIT_H

#include "simd.h"

INLINE vec next_cell(vec i, vec f, vec g, vec c_before) { return v_fma(f, c_before, v_mul(i, g)); }

/* Of the four gates before their nonlinearity, and of the cell before the step. */
typedef struct {
    vec i, f, g, o, c_before;
} UnitGradient;

/* From the gradients of the state after the step. Uses w - (w t) t for w (1 - t^2): as exact. */
INLINE UnitGradient unit_gradient(vec i, vec f, vec g, vec o, vec tanh_c, vec c_before, vec dh,
                                  vec dc) {
    const vec one = v_set1(1.0f);
    const vec dh_o = v_mul(dh, o);
    const vec dh_o_t = v_mul(dh_o, tanh_c);
    const vec dc_now = v_fnma(dh_o_t, tanh_c, v_add(dc, dh_o));
    const vec dc_i = v_mul(dc_now, i);
    const vec dc_i_g = v_mul(dc_i, g);
    const vec dc_f = v_mul(dc_now, f);
    UnitGradient gradient;
    gradient.i = v_mul(dc_i_g, v_sub(one, i));
    gradient.f = v_mul(v_mul(dc_f, c_before), v_sub(one, f));
    gradient.g = v_fnma(dc_i_g, g, dc_i);
    gradient.o = v_mul(dh_o_t, v_sub(one, o));
    gradient.c_before = dc_f;
    return gradient;
}

#endif
