// Runs CUDA C++ on the CPU: the instructions of intrinsics.cu on an emulated block. Its THREADS are
// fibers, and the warp's instructions move data between lanes as the PTX ISA lays them out.
// Background copies happen as late as their waits allow, shared memory starts as NaN and one warp
// runs ahead as far as the barriers let it, so a missing wait or barrier shows in the result.

#pragma once

#include <ucontext.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <vector>

typedef unsigned short bf16;
typedef unsigned int u32;

#define KERNEL static
#define DEVICE static inline
#define __launch_bounds__(...)
#define __grid_constant__

namespace {

constexpr int LANES = 32;
constexpr int BLOCK_THREADS = THREADS;
constexpr size_t STACK_BYTES = 256 * 1024;
constexpr size_t SHARED_BYTES = 227 * 1024;

struct Copy {
    bf16* to;
    const bf16* from; // null for zeros
};

// What a lane shows the others in one instruction.
struct Shown {
    const bf16* row;
    u32 a[4], b[2];
    float value;
};

struct Fiber {
    ucontext_t context;
    std::vector<char> stack = std::vector<char>(STACK_BYTES);
    bool finished, at_barrier;
    long instructions; // of the warp, that this lane has shown its part of
    std::vector<Copy> open;
    std::deque<std::vector<Copy>> groups;
};

Fiber fibers[BLOCK_THREADS];
Shown shown[BLOCK_THREADS][2];
ucontext_t scheduler;
int current;
int block[3], grid_x;
std::function<void()> kernel;
alignas(1024) unsigned char shared[SHARED_BYTES];

void yield() { swapcontext(&fibers[current].context, &scheduler); }

// Shows `mine` to the warp and waits for the other lanes; what lane i showed.
template <class F> void exchange(const Shown& mine, F&& read) {
    int self = current, warp = self / LANES * LANES;
    long turn = fibers[self].instructions++;
    shown[self][turn & 1] = mine;
    for (bool all = false; !all;) {
        all = true;
        for (int i = 0; i < LANES; i++) all = all && fibers[warp + i].instructions > turn;
        if (!all) yield();
    }
    read([&](int lane) -> const Shown& { return shown[warp + lane][turn & 1]; });
}

void run_fiber() {
    kernel();
    fibers[current].finished = true;
    yield();
}

void run_block() {
    memset(shared, 0xff, sizeof shared);
    for (int i = 0; i < BLOCK_THREADS; i++) {
        Fiber& fiber = fibers[i];
        fiber.finished = fiber.at_barrier = false;
        fiber.instructions = 0;
        fiber.open.clear();
        fiber.groups.clear();
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.data();
        fiber.context.uc_stack.ss_size = fiber.stack.size();
        fiber.context.uc_link = nullptr;
        makecontext(&fiber.context, run_fiber, 0);
    }
    for (bool all = false; !all;) {
        for (int warp = 0; warp < BLOCK_THREADS; warp += LANES)
            for (bool moved = true; moved;) {
                moved = false;
                for (int i = warp; i < warp + LANES; i++) {
                    if (fibers[i].finished || fibers[i].at_barrier) continue;
                    current = i;
                    swapcontext(&scheduler, &fibers[i].context);
                    moved = true;
                }
            }
        all = true;
        for (Fiber& fiber : fibers) {
            all = all && fiber.finished;
            fiber.at_barrier = false;
        }
    }
}

void launch(int x, int y, int z, std::function<void()> body) {
    kernel = std::move(body);
    grid_x = x;
    for (block[2] = 0; block[2] < z; block[2]++)
        for (block[1] = 0; block[1] < y; block[1]++)
            for (block[0] = 0; block[0] < x; block[0]++) run_block();
}

float widen(u32 bits) {
    bits <<= 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

u32 narrow(float value) {
    u32 bits;
    memcpy(&bits, &value, 4);
    return std::isnan(value) ? 0x7fc0 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

} // namespace

DEVICE int thread_index() { return current; }
DEVICE int lane_index() { return current % LANES; }
DEVICE int warp_index() { return current / LANES; }
DEVICE int block_x() { return block[0]; }
DEVICE int block_y() { return block[1]; }
DEVICE int block_z() { return block[2]; }
DEVICE int blocks_x() { return grid_x; }
DEVICE unsigned char* shared_memory() { return shared; }

DEVICE void sync_block() {
    fibers[current].at_barrier = true;
    yield();
}

DEVICE void load_matrices(u32 (&r)[4], const bf16* row) {
    Shown mine = {};
    mine.row = row;
    int lane = lane_index();
    exchange(mine, [&](auto of) {
        for (int i = 0; i < 4; i++) {
            const bf16* from = of(8 * i + lane / 4).row + 2 * (lane % 4);
            r[i] = from[0] | u32(from[1]) << 16;
        }
    });
}

DEVICE void load_matrices_transposed(u32 (&r)[4], const bf16* row) {
    Shown mine = {};
    mine.row = row;
    int lane = lane_index();
    exchange(mine, [&](auto of) {
        for (int i = 0; i < 4; i++)
            r[i] = of(8 * i + 2 * (lane % 4)).row[lane / 4] |
                   u32(of(8 * i + 2 * (lane % 4) + 1).row[lane / 4]) << 16;
    });
}

DEVICE void multiply_add(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    Shown mine = {};
    memcpy(mine.a, a, sizeof mine.a);
    mine.b[0] = b0;
    mine.b[1] = b1;
    int lane = lane_index();
    exchange(mine, [&](auto of) {
        for (int i = 0; i < 4; i++) {
            int row = lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2;
            for (int k = 0; k < 16; k++) {
                u32 left = of(row % 8 * 4 + k % 8 / 2).a[row / 8 + 2 * (k / 8)];
                u32 right = of(column * 4 + k % 8 / 2).b[k / 8];
                c[i] += widen(k % 2 ? left >> 16 : left & 0xffff) *
                        widen(k % 2 ? right >> 16 : right & 0xffff);
            }
        }
    });
}

DEVICE void copy_async(bf16* to, const bf16* from, bool valid) {
    fibers[current].open.push_back({to, valid ? from : nullptr});
}

DEVICE void commit_copies() {
    Fiber& fiber = fibers[current];
    fiber.groups.push_back(std::move(fiber.open));
    fiber.open.clear();
}

template <int PENDING> DEVICE void wait_copies() {
    std::deque<std::vector<Copy>>& groups = fibers[current].groups;
    while (groups.size() > PENDING) {
        for (const Copy& copy : groups.front())
            if (copy.from) memcpy(copy.to, copy.from, 16);
            else memset(copy.to, 0, 16);
        groups.pop_front();
    }
}

DEVICE float shuffle_xor(float value, int mask) {
    Shown mine = {};
    mine.value = value;
    int lane = lane_index();
    exchange(mine, [&](auto of) { value = of(lane ^ mask).value; });
    return value;
}

DEVICE float power_of_two(float x) { return exp2f(x); }
DEVICE float natural_log(float x) { return logf(x); }
DEVICE float square_root(float x) { return sqrtf(x); }
DEVICE float absolute(float x) { return fabsf(x); }
DEVICE u32 pack(float low, float high) { return narrow(low) | narrow(high) << 16; }
DEVICE float low_half(u32 packed) { return widen(packed & 0xffff); }
DEVICE float high_half(u32 packed) { return widen(packed >> 16); }

// Tensors on stdin and stdout.

namespace {

template <class T> std::vector<T> read(size_t count) {
    std::vector<T> values(count);
    if (fread(values.data(), sizeof(T), count, stdin) != count) exit(2);
    return values;
}

template <class T> void write(const std::vector<T>& values) {
    if (fwrite(values.data(), sizeof(T), values.size(), stdout) != values.size()) exit(3);
}

int pieces(int count, int side) { return (count + side - 1) / side; }

} // namespace
