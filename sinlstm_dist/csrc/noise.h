/* Gaussian noise: the same bits as data/noise.py, which is the definition and says where the
 * coefficients come from.
 *
 * Loops over lanes that the compiler turns into vectors. A lane is one block of the generator: four
 * words, and four numbers of a row. No multiply-add here: each operation rounds once.
 *
 * The float mode is the caller's, unlike that of the kernel's other results (float_mode.h), because
 * the definition in numpy computes in that mode too. It matters only for a tiny deviation: no other
 * number here is ever subnormal.
 */
#ifndef SINLSTM_NOISE_H
#define SINLSTM_NOISE_H

#include "kernel.h"
#include "simd.h"

#define BLOCK_NUMBERS 4
#define PHILOX_ROUNDS 10

typedef struct {
    uint32_t low, high; /* of the row */
    uint32_t block;     /* in the row */
} Counter;

typedef struct {
    float first, second;
} Pair;

INLINE uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

INLINE float float_of(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* The value at x by Horner's rule. */
INLINE float polynomial(const float *coefficients, int count, float x) {
    float value = coefficients[0];
    UNROLLED for (int n = 1; n < count; n++) value = value * x + coefficients[n];
    return value;
}
#define POLYNOMIAL(coefficients, x)                                   \
    polynomial(coefficients, sizeof(coefficients) / sizeof(float), x)

/* -2 log(n / 2^31), n from 1 to 2^31. */
INLINE float log_of_square(float n) {
    static const float log_1_plus[] = {0x1.645eb4p-4f,  -0x1.2432bap-3f, 0x1.317456p-3f,
                                       -0x1.53824ap-3f, 0x1.98d7f2p-3f,  -0x1.000382p-2f,
                                       0x1.5556d8p-2f};
    const uint32_t bits = bits_of(n);
    const int32_t exponent = (int32_t)(bits - 0x3f3504f3u) >> 23; /* of n / sqrt(1/2) */
    const float x = float_of(bits - ((uint32_t)exponent << 23)) - 1.0f;
    const float log = (POLYNOMIAL(log_1_plus, x) * x - 0.5f) * (x * x) + x;
    return ((float)(exponent - 31) * 0.693147180559945f + log) * -2.0f;
}

/* Two normal numbers from two words, by Box and Muller. */
INLINE Pair normal_pair(uint32_t radius, uint32_t angle) {
    static const float cosine_of[] = {0x1.d9d57ep+5f, -0x1.55c5e0p+6f, 0x1.03c1dep+6f,
                                      -0x1.3bd3ccp+4f};
    static const float sine_of[] = {-0x1.2d9302p+6f, 0x1.465e92p+6f, -0x1.4abbbap+5f,
                                    0x1.921fb6p+2f};
    const float uniform = (float)(int32_t)((radius >> 1) | 1u);
    const float length = __builtin_sqrtf(log_of_square(uniform));
    const float turns = (float)((int32_t)angle >> 2) * 0x1p-32f;
    const float square = turns * turns;
    const float cosine = POLYNOMIAL(cosine_of, square) * square + 1.0f;
    const float sine = POLYNOMIAL(sine_of, square) * turns;
    const uint32_t sign = (angle & 2u) << 30, swapped = -(angle & 1u); /* the quarter */
    const float side = float_of(bits_of(length) ^ sign);
    const uint32_t first = bits_of(side * cosine), second = bits_of(side * sine);
    const uint32_t difference = (first ^ second) & swapped;
    return (Pair){float_of(first ^ difference), float_of(second ^ difference)};
}

/* numbers[j][lane] = number j of the block of this lane; Philox4x32-10. */
static void normal_blocks(float numbers[BLOCK_NUMBERS][LANES], const uint32_t counters[3][LANES],
                          const uint32_t key[2]) {
    for (int lane = 0; lane < LANES; lane++) {
        uint32_t c0 = counters[0][lane], c1 = counters[1][lane], c2 = counters[2][lane], c3 = 0;
        uint32_t k0 = key[0], k1 = key[1];
        UNROLLED for (int round = 0; round < PHILOX_ROUNDS; round++) {
            const uint64_t product0 = UINT64_C(0xd2511f53) * c0;
            const uint64_t product1 = UINT64_C(0xcd9e8d57) * c2;
            c0 = (uint32_t)(product1 >> 32) ^ c1 ^ k0;
            c1 = (uint32_t)product1;
            c2 = (uint32_t)(product0 >> 32) ^ c3 ^ k1;
            c3 = (uint32_t)product0;
            k0 += 0x9e3779b9u;
            k1 += 0xbb67ae85u;
        }
        const Pair a = normal_pair(c0, c1), b = normal_pair(c2, c3);
        numbers[0][lane] = a.first;
        numbers[1][lane] = a.second;
        numbers[2][lane] = b.first;
        numbers[3][lane] = b.second;
    }
}

static void add_noise(const Noise *n) {
    const int64_t blocks = (n->columns + BLOCK_NUMBERS - 1) / BLOCK_NUMBERS;
    const int64_t total = n->num_rows * blocks;
    int64_t row = 0, block = 0;
    for (int64_t done = 0; done < total; done += LANES) {
        const int lanes = (int)(total - done < LANES ? total - done : LANES);
        uint32_t counters[3][LANES] = {{0}};
        float numbers[BLOCK_NUMBERS][LANES], *values[LANES];
        int counts[LANES];
        for (int lane = 0; lane < lanes; lane++) {
            const int64_t column = block * BLOCK_NUMBERS, left = n->columns - column;
            counters[0][lane] = (uint32_t)n->rows[row];
            counters[1][lane] = (uint32_t)(n->rows[row] >> 32);
            counters[2][lane] = (uint32_t)block;
            values[lane] = n->values + row * n->columns + column;
            counts[lane] = left < BLOCK_NUMBERS ? (int)left : BLOCK_NUMBERS;
            if (++block == blocks) block = 0, row++;
        }
        normal_blocks(numbers, counters, n->key);
        for (int lane = 0; lane < lanes; lane++)
            for (int j = 0; j < counts[lane]; j++)
                values[lane][j] += n->deviation * numbers[j][lane];
    }
}

#endif
