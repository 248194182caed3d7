/* Prints what the kernel computes for problems of its own making, without Python: the bits of a
 * row of gradients and totals, of noise, or of shuffled positions, one line per problem. Its
 * argument is the instruction set. test_arm.py compares the lines of an Arm processor with those of
 * this machine. */
#include "call.h"
#include "memory.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SAMPLES 17 /* a whole block, and one with idle lanes */
#define MAX_WINDOW 300
#define MAX_UNITS 17
#define MAX_POSITIONS 40
#define MOST_LAYERS 2
#define MAX_ROW (MOST_LAYERS * 4 * MAX_UNITS * (2 * MAX_UNITS + 2) + MAX_UNITS + 1 + NUM_TOTALS)

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

/* The layer above `below` layers, whose inputs have D features. */
static Layer random_layer(int below, Kind kind, int D, int H) {
    static float memory[MOST_LAYERS][4][4 * MAX_UNITS * MAX_UNITS];
    float *ih = memory[below][0], *hh = memory[below][1];
    float *bias_ih = memory[below][2], *bias_hh = memory[below][3];
    random_floats(bias_ih, 4 * H, kind.weights);
    for (int j = 0; j < H; j++) bias_ih[H + j] += kind.forget_bias;
    random_floats(ih, 4 * H * D, kind.weights);
    random_floats(hh, 4 * H * H, kind.weights);
    random_floats(bias_hh, 4 * H, kind.weights);
    return (Layer){D, ih, hh, bias_ih, bias_hh, NULL};
}

static void print_row(const Kernel *kernel, Kind kind, int W, int H, int L) {
    static float inputs[SAMPLES * MAX_WINDOW], targets[SAMPLES], row[MAX_ROW];
    static float head[MAX_UNITS], head_bias[1];
    static const int64_t size = SAMPLES;
    state = (L * 1000 + W) * 100 + H;
    Problem p = {.num_samples = SAMPLES,
                 .W = W,
                 .H = H,
                 .L = L,
                 .num_threads = 2,
                 .inputs = {random_floats(inputs, SAMPLES * W, 1.0f), W, 1, 1},
                 .targets = {random_floats(targets, SAMPLES, 1.0f), 1, 0, 0},
                 .head_weight = random_floats(head, H, kind.head),
                 .head_bias = random_floats(head_bias, 1, 1.0f),
                 .tolerance = 0.1f,
                 .with_gradient = true};
    for (int l = 0; l < L; l++) p.layers[l] = random_layer(l, kind, l ? H : 1, H);
    const Pieces pieces = {1, items_in(size), &size, row, 0};
    if (!run_predictor(kernel, &p, &pieces)) exit(1);
    printf("%s, %d units, window %d, %d layers:", kind.name, H, W, L);
    const size_t layers = lstm_floats(1, H) + (L - 1) * lstm_floats(H, H);
    const int floats = (int)layers + H + 1 + NUM_TOTALS;
    for (int i = 0; i < floats; i++) printf(" %08" PRIx32, bits_of(row[i]));
    printf("\n");
}

/* Values as small as the noise: where the deviation is tiny, their sums are subnormal. */
static void print_noise(const Kernel *kernel, float deviation, int columns) {
    static const int64_t rows[] = {0, 1, 1000, (INT64_C(1) << 33) + 5, INT64_MAX};
    const int num_rows = sizeof rows / sizeof *rows;
    static float values[sizeof rows / sizeof *rows * MAX_WINDOW];
    state = columns;
    random_floats(values, num_rows * columns, deviation);
    const Noise noise = {values, rows, num_rows, columns, {0xffffffffu, 7}, deviation};
    kernel->add_noise(&noise);
    printf("noise of %a, window %d:", (double)deviation, columns);
    for (int i = 0; i < num_rows * columns; i++) printf(" %08" PRIx32, bits_of(values[i]));
    printf("\n");
}

static void print_shuffle(const Kernel *kernel, uint64_t size, uint32_t height) {
    int64_t positions[MAX_POSITIONS], indices[MAX_POSITIONS];
    const int count = size < MAX_POSITIONS ? (int)size : MAX_POSITIONS;
    for (int i = 0; i < count; i++) positions[i] = i * (int64_t)(size / count);
    Shuffle order = {.positions = positions,
                     .count = count,
                     .size = size,
                     .height = height,
                     .width = (uint32_t)((size + height - 1) / height),
                     .indices = indices};
    state = size;
    for (int i = 0; i < NUM_SHUFFLE_KEYS; i++) order.keys[i] = (uint32_t)random_word();
    kernel->shuffle(&order);
    printf("shuffle of %" PRIu64 ":", size);
    for (int i = 0; i < count; i++) printf(" %016" PRIx64, (uint64_t)indices[i]);
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
    static const float deviations[] = {1.0f, 0.02f, 0x1p-130f};
    static const struct {
        uint64_t size;
        uint32_t height; /* of the grid: the square root, rounded up */
    } orders[] = {{1, 1},
                  {17, 5},
                  {1000, 32},
                  {10007, 101},
                  {UINT64_C(1) << 33, 92682},
                  {UINT64_C(1) << 61, 1518500250}};
    const Kernel *kernel = argc == 2 ? find_kernel(argv[1]) : NULL;
    if (!kernel || !thread_memory_init()) return 2;
    for (int k = 0; k < 3; k++)
        for (int H = 1; H <= MAX_UNITS; H++) {
            print_row(kernel, kinds[k], 50, H, 1);
            print_row(kernel, kinds[k], MAX_WINDOW, H, 1);
            print_row(kernel, kinds[k], 50, H, MOST_LAYERS);
        }
    for (int d = 0; d < 3; d++) {
        print_noise(kernel, deviations[d], 50);
        print_noise(kernel, deviations[d], MAX_WINDOW);
    }
    for (int n = 0; n < 6; n++) print_shuffle(kernel, orders[n].size, orders[n].height);
    return 0;
}
