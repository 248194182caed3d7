/* Prints what the kernel computes for problems of its own making, without Python: the bits of a
 * row of gradients and totals, one line per problem. Its argument is the instruction set.
 * test_arm.py compares the lines of an Arm processor with those of this machine. */
#include "call.h"
#include "memory.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SAMPLES 17 /* a whole block, and one with idle lanes */
#define MAX_WINDOW 300
#define MAX_UNITS 17
#define MAX_ROW (4 * MAX_UNITS * (MAX_UNITS + 3) + MAX_UNITS + 1 + NUM_TOTALS)

/* SplitMix64 (Steele, Lea and Flood, 2014), and from it floats in [-1, 1), exactly. */
static uint64_t state;

static uint64_t random_word(void) {
    uint64_t z = state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static float *random_floats(float *out, int count, float scale) {
    for (int i = 0; i < count; i++)
        out[i] = scale * ((float)(int32_t)(random_word() >> 40) * 0x1p-23f - 1.0f);
    return out;
}

/* A CPU's own choice are the sign and the payload of a NaN. */
static uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return x == x ? bits : 0x7fc00000;
}

typedef struct {
    const char *name;
    float weights, head, forget_bias;
} Kind;

static void print_row(const Kernel *kernel, Kind kind, int W, int H) {
    static float inputs[SAMPLES * MAX_WINDOW], targets[SAMPLES], row[MAX_ROW];
    static float ih[4 * MAX_UNITS], hh[4 * MAX_UNITS * MAX_UNITS], bias_ih[4 * MAX_UNITS],
        bias_hh[4 * MAX_UNITS], head[MAX_UNITS], head_bias[1];
    static const int64_t size = SAMPLES;
    state = W * 100 + H;
    random_floats(bias_ih, 4 * H, kind.weights);
    for (int j = 0; j < H; j++) bias_ih[H + j] += kind.forget_bias;
    Problem p = {.num_samples = SAMPLES,
                 .W = W,
                 .D = 1,
                 .H = H,
                 .num_threads = 2,
                 .inputs = {random_floats(inputs, SAMPLES * W, 1.0f), W, 1, 1},
                 .targets = {random_floats(targets, SAMPLES, 1.0f), 1, 0, 0},
                 .weight_ih = random_floats(ih, 4 * H, kind.weights),
                 .weight_hh = random_floats(hh, 4 * H * H, kind.weights),
                 .bias_ih = bias_ih,
                 .bias_hh = random_floats(bias_hh, 4 * H, kind.weights),
                 .head_weight = random_floats(head, H, kind.head),
                 .head_bias = random_floats(head_bias, 1, 1.0f),
                 .tolerance = 0.1f,
                 .with_gradient = true};
    const Pieces pieces = {1, items_in(size), &size, row, 0};
    if (!run_predictor(kernel, &p, &pieces)) exit(1);
    printf("%s, %d units, window %d:", kind.name, H, W);
    const int floats = (int)lstm_floats(1, H) + H + 1 + NUM_TOTALS;
    for (int i = 0; i < floats; i++) printf(" %08" PRIx32, bits_of(row[i]));
    printf("\n");
}

static const Kernel *find_kernel(const char *name) {
#if defined(__x86_64__)
    if (!strcmp(name, "avx512")) return &kernel_avx512;
    if (!strcmp(name, "avx2")) return &kernel_avx2;
#endif
    return strcmp(name, "plain") ? NULL : &kernel_plain;
}

int main(int argc, char **argv) {
    /* Forget gates that are nearly closed, and a head that is nearly zero: the gradients shrink by
     * a factor of 20 per step, into the subnormal numbers and to zero. */
    static const Kind kinds[] = {{"small weights", 0.5f, 0.5f, 0.0f},
                                 {"large weights", 20.0f, 20.0f, 0.0f},
                                 {"vanishing gradients", 0.5f, 0x1p-115f, -3.0f}};
    const Kernel *kernel = argc == 2 ? find_kernel(argv[1]) : NULL;
    if (!kernel || !thread_memory_init()) return 2;
    for (int k = 0; k < 3; k++)
        for (int H = 1; H <= MAX_UNITS; H++) {
            print_row(kernel, kinds[k], 50, H);
            print_row(kernel, kinds[k], MAX_WINDOW, H);
        }
    return 0;
}
