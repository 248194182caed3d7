/* The kernel's multiply-adds as functions of arrays, for test_lstm_csrc.py. */
#include "float_mode.h"
#include "simd.h"

#define LOOP_OVER(name, function)                                                          \
    void name(int64_t count, const float *a, const float *b, const float *c, float *out) { \
        const FloatMode before = enter_float_mode();                                       \
        for (int64_t i = 0; i < count; i += LANES)                                         \
            v_store(out + i, function(v_load(a + i), v_load(b + i), v_load(c + i)));       \
        leave_float_mode(before);                                                          \
    }

LOOP_OVER(fma_of, v_fma)
LOOP_OVER(fnma_of, v_fnma)
