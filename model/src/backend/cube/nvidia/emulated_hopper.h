// The instructions of intrinsics_hopper.cu on the emulated block. A product happens as late as its
// wait allows, out of what shared memory holds by then, so a missing wait or barrier shows.

#pragma once

#include "emulated.h"

typedef unsigned long long u64;

namespace {

// A product under way: this thread's elements of c (64 × 8 blocks) of the warpgroup.
struct Product {
    float* c;
    int blocks;
    bool accumulate, a_in_registers, b_by_columns;
    float a_rows[2][16];
    u64 a, b;
};

std::vector<Product> open_products[BLOCK_THREADS];
std::deque<std::vector<Product>> product_groups[BLOCK_THREADS];

// The element at `row` and column `k`, below 16, of an operand whose rows are those of its panels.
float by_rows(u64 operand, int row, int k) {
    u64 start = (operand & 0x3fff) << 4, eight_rows = (operand >> 32 & 0x3fff) << 4;
    u64 address = start + row / 8 * eight_rows + row % 8 * 128 + k * 2;
    address ^= (address >> 7 & 7) << 4;
    return widen(*reinterpret_cast<bf16*>(shared + address));
}

// The element at column `n` and row `k`, below 16, of an operand whose rows are the product's sum.
float by_columns(u64 operand, int n, int k) {
    u64 start = (operand & 0x3fff) << 4, panel = (operand >> 16 & 0x3fff) << 4;
    u64 eight_rows = (operand >> 32 & 0x3fff) << 4;
    u64 address = start + n / 64 * panel + k / 8 * eight_rows + k % 8 * 128 + n % 64 * 2;
    address ^= (address >> 7 & 7) << 4;
    return widen(*reinterpret_cast<bf16*>(shared + address));
}

void carry_out(const Product& product) {
    int lane = current % LANES, warp = current / LANES % 4;
    for (int n = 0; n < product.blocks; n++)
        for (int i = 0; i < 4; i++) {
            int half = i / 2, row = 16 * warp + lane / 4 + 8 * half;
            int column = 8 * n + 2 * (lane % 4) + i % 2;
            float& c = product.c[4 * n + i];
            float sum = product.accumulate ? c : 0.0f;
            for (int k = 0; k < 16; k++) {
                float left = product.a_in_registers ? product.a_rows[half][k]
                                                    : by_rows(product.a, row, k);
                sum += left * (product.b_by_columns ? by_columns(product.b, column, k)
                                                    : by_rows(product.b, column, k));
            }
            c = sum;
        }
}

void check_operand(u64 operand) {
    // 128-byte swizzling, inside a panel that starts at a multiple of 1024 bytes.
    if (operand >> 62 != 1 || (operand & 0x3f & ~6ull) != 0) {
        fprintf(stderr, "operand %llx\n", operand);
        exit(4);
    }
}

} // namespace

DEVICE u64 operand(const bf16* start, int panel_bytes) {
    u64 address = reinterpret_cast<const unsigned char*>(start) - shared;
    return address >> 4 | u64(panel_bytes >> 4) << 16 | u64(1024 >> 4) << 32 | 1ull << 62;
}

template <int N> DEVICE void multiply(float (&c)[N][4], u64 a, u64 b) {
    check_operand(a);
    check_operand(b);
    open_products[current].push_back({&c[0][0], N, false, false, false, {}, a, b});
}

template <int N> DEVICE void multiply_add(float (&c)[N][4], u64 a, u64 b) {
    check_operand(a);
    check_operand(b);
    open_products[current].push_back({&c[0][0], N, true, false, false, {}, a, b});
}

template <int N> DEVICE void multiply_add_columns(float (&c)[N][4], const u32 (&a)[4], u64 b) {
    check_operand(b);
    Product product = {&c[0][0], N, true, true, true, {}, 0, b};
    Shown mine = {};
    memcpy(mine.a, a, sizeof mine.a);
    int row = lane_index() / 4;
    exchange(mine, [&](auto of) {
        for (int half = 0; half < 2; half++)
            for (int k = 0; k < 16; k++) {
                u32 pair = of(row * 4 + k % 8 / 2).a[half + 2 * (k / 8)];
                product.a_rows[half][k] = widen(k % 2 ? pair >> 16 : pair & 0xffff);
            }
    });
    open_products[current].push_back(product);
}

DEVICE void publish_copies() {}
DEVICE void begin_products() {}

DEVICE void commit_products() {
    product_groups[current].push_back(std::move(open_products[current]));
    open_products[current].clear();
}

template <int PENDING, int N> DEVICE void wait_products(float (&)[N][4]) {
    std::deque<std::vector<Product>>& groups = product_groups[current];
    while (groups.size() > PENDING) {
        for (const Product& product : groups.front()) carry_out(product);
        groups.pop_front();
    }
}
