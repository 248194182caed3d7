/* Runs the kernels of csrc/gpu.cu on the CPU: every thread of a block is a fiber, which runs up to
 * the next barrier. A missing barrier shows when the fibers run in the other order. test_cuda.py
 * builds this for one INPUT_SIZE and HIDDEN_SIZE. */
#include <cmath>
#include <cstdint>
#include <cstring>
#include <ucontext.h>
#include <vector>
#include <xmmintrin.h>

#define __device__
#define __global__
#define __shared__
#define __forceinline__ inline
#define __launch_bounds__(threads)

struct float4 {
    float x, y, z, w;
};
struct Index {
    int x, y, z;
};
static Index threadIdx, blockIdx, blockDim, gridDim;

static float __fadd_rn(float a, float b) { return a + b; }
static float __fsub_rn(float a, float b) { return a - b; }
static float __fmul_rn(float a, float b) { return a * b; }
static float __fdiv_rn(float a, float b) { return a / b; }
static float __fmaf_rn(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
static uint32_t __float_as_uint(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}
static float __uint_as_float(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static void __syncthreads();
static float __shfl_down_sync(unsigned mask, float x, int delta, int width);
#include "gpu.cu"

#define STACK_BYTES (64 << 10)
#define SHARED_NUMBERS (48 << 8)
float memory[SHARED_NUMBERS];

static ucontext_t scheduler;
static ucontext_t *running;
static std::vector<float> told; /* what each thread tells its neighbours */

static int number_of(Index thread) {
    return (thread.z * blockDim.y + thread.y) * blockDim.x + thread.x;
}

static void __syncthreads() { swapcontext(running, &scheduler); }

/* A GPU's result is undefined unless all threads of a warp are at the same place. */
#define WARP 32
static std::vector<void *> places;
static bool is_defined = true;

static __attribute__((noinline)) float __shfl_down_sync(unsigned, float x, int delta, int width) {
    const int thread = number_of(threadIdx);
    told[thread] = x, places[thread] = __builtin_return_address(0);
    __syncthreads();
    const int first = thread / WARP * WARP;
    for (int other = first; other < first + WARP; other++)
        is_defined &= other < (int)places.size() && places[other] == places[thread];
    const float heard = told[thread % width + delta < width ? thread + delta : thread];
    __syncthreads();
    return heard;
}

static const char *kernel;
static void *const *values; /* addresses of the arguments */
#define ARGUMENT(type, n) (*(type const *)values[n])
#define FLOATS(n) ARGUMENT(float *, n)

static void run_thread() {
    if (!strcmp(kernel, "pack_weights"))
        pack_weights(FLOATS(0), FLOATS(1), FLOATS(2), FLOATS(3), FLOATS(4));
    else if (!strcmp(kernel, "block_states"))
        block_states(FLOATS(0), FLOATS(1), ARGUMENT(Range *, 2), FLOATS(3), FLOATS(4), FLOATS(5),
                     FLOATS(6), FLOATS(7), ARGUMENT(int, 8), ARGUMENT(int, 9));
    else if (!strcmp(kernel, "item_rows"))
        item_rows(FLOATS(0), ARGUMENT(Range *, 1), ARGUMENT(Range *, 2), FLOATS(3), FLOATS(4),
                  ARGUMENT(int, 5), ARGUMENT(float, 6), ARGUMENT(int, 7));
    else if (!strcmp(kernel, "piece_rows"))
        piece_rows(FLOATS(0), ARGUMENT(int *, 1), FLOATS(2), ARGUMENT(int, 3), ARGUMENT(int, 4));
}

static void run_block(bool backwards) {
    const int count = blockDim.x * blockDim.y * blockDim.z;
    static std::vector<ucontext_t> fibers;
    static std::vector<char> stacks;
    if ((int)fibers.size() < count) {
        fibers.resize(count);
        stacks.resize((size_t)count * STACK_BYTES);
    }
    told.assign(count, NAN);
    places.assign(count, nullptr);
    for (float &number : memory) number = NAN;
    std::vector<bool> is_done(count);
    for (int thread = 0; thread < count; thread++) {
        getcontext(&fibers[thread]);
        fibers[thread].uc_stack.ss_sp = &stacks[(size_t)thread * STACK_BYTES];
        fibers[thread].uc_stack.ss_size = STACK_BYTES;
        fibers[thread].uc_link = nullptr;
        makecontext(&fibers[thread], (void (*)()) + [] {
            run_thread();
            ucontext_t *ended = running;
            running = nullptr;
            swapcontext(ended, &scheduler);
        }, 0);
    }
    for (int left = count; left > 0;)
        for (int i = 0; i < count; i++) {
            const int thread = backwards ? count - 1 - i : i;
            if (is_done[thread]) continue;
            threadIdx = {thread % blockDim.x, thread / blockDim.x % blockDim.y,
                         thread / blockDim.x / blockDim.y};
            running = &fibers[thread];
            swapcontext(&scheduler, running);
            if (running) continue;
            is_done[thread] = true;
            left--;
        }
}

/* Returns whether its warps took part as a whole, and needed no more shared memory than it has. */
extern "C" bool launch(const char *name, const int *grid, const int *block, int shared_bytes,
                       void *const *arguments, bool backwards) {
    kernel = name, values = arguments;
    blockDim = {block[0], block[1], block[2]}, gridDim = {grid[0], grid[1], grid[2]};
    const unsigned before = _mm_getcsr();
    _mm_setcsr(0x9fc0); /* subnormal numbers are zeros */
    for (int y = 0; y < gridDim.y; y++)
        for (int x = 0; x < gridDim.x; x++) {
            blockIdx = {x, y, 0};
            run_block(backwards);
        }
    _mm_setcsr(before);
    return is_defined && shared_bytes <= (int)sizeof memory;
}
