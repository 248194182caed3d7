/* A random bijection of [0, size): the same numbers as `_shuffle_by_numpy` of plan.py, which is the
 * definition. Loops over lanes that the compiler turns into vectors. */
#ifndef SINLSTM_SHUFFLE_H
#define SINLSTM_SHUFFLE_H

#include "kernel.h"
#include "simd.h"

/* `number` plus a hash of `by`, modulo `size`; the hash is the finalizer of MurmurHash3. */
INLINE uint32_t shift(uint32_t number, uint32_t by, uint32_t key, uint32_t size) {
    uint32_t word = by ^ key;
    word ^= word >> 16;
    word *= 0x85ebca6bu;
    word ^= word >> 13;
    word *= 0xc2b2ae35u;
    word ^= word >> 16;
    const uint32_t moved = number + (uint32_t)((uint64_t)word * size >> 32);
    return moved < moved - size ? moved : moved - size;
}

/* Moves cells of the grid, each to another place in it. */
static void move_cells(const Shuffle *s, uint64_t *cells, int count) {
    uint32_t rows[LANES] = {0}, columns[LANES] = {0};
    for (int lane = 0; lane < count; lane++) {
        rows[lane] = (uint32_t)(cells[lane] / s->width);
        columns[lane] = (uint32_t)(cells[lane] % s->width);
    }
    for (int round = 0; round < NUM_SHUFFLE_KEYS; round += 2)
        for (int lane = 0; lane < LANES; lane++) {
            rows[lane] = shift(rows[lane], columns[lane], s->keys[round], s->height);
            columns[lane] = shift(columns[lane], rows[lane], s->keys[round + 1], s->width);
        }
    for (int lane = 0; lane < count; lane++)
        cells[lane] = (uint64_t)rows[lane] * s->width + columns[lane];
}

static void shuffle(const Shuffle *s) {
    for (int64_t done = 0; done < s->count; done += LANES) {
        const int count = (int)(s->count - done < LANES ? s->count - done : LANES);
        uint64_t cells[LANES];
        for (int lane = 0; lane < count; lane++) cells[lane] = (uint64_t)s->positions[done + lane];
        move_cells(s, cells, count);
        for (int lane = 0; lane < count; lane++) {
            while (cells[lane] >= s->size) move_cells(s, cells + lane, 1);
            s->indices[done + lane] = (int64_t)cells[lane];
        }
    }
}

#endif
