// Hopper's instructions (sm_90a): products of a warpgroup, 128 threads, out of shared memory.
//
// An operand in shared memory lies in panels of 64 columns. A row of a panel is 128 bytes, its
// 16-byte pieces permuted by the row's number modulo 8, and a panel starts at a multiple of 1024
// bytes (PTX ISA, "Asynchronous Warpgroup Level Matrix Shared Memory Layout", 128-byte swizzling).
// Accumulators and left operands in registers are those of mma.m16n8k16 for the 16 rows of a warp.

typedef unsigned long long u64;

// Describes the operand whose first row starts at `start`; panels are `panel_bytes` apart, which
// counts only for an operand that is read by columns.
DEVICE u64 operand(const bf16* start, int panel_bytes) {
    u64 rows_of_eight = 1024 >> 4, swizzle_128 = 1;
    return u64((shared_address(start) & 0x3ffff) >> 4) | u64(panel_bytes >> 4) << 16 |
           rows_of_eight << 32 | swizzle_128 << 62;
}

#define REGISTERS_4(mode, c, n) mode(c[n][0]), mode(c[n][1]), mode(c[n][2]), mode(c[n][3])
#define REGISTERS_16(mode, c, n)                                                             \
    REGISTERS_4(mode, c, n), REGISTERS_4(mode, c, n + 1), REGISTERS_4(mode, c, n + 2),       \
        REGISTERS_4(mode, c, n + 3)
#define REGISTERS_32(mode, c, n) REGISTERS_16(mode, c, n), REGISTERS_16(mode, c, n + 4)
#define NAMES_32 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, " \
    "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define NAMES_64 \
    NAMES_32 ", " \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, " \
    "%49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

// c (64 × 64) = a (64 × 16) · bᵀ, b (64 × 16).
DEVICE void multiply(float (&c)[8][4], u64 a, u64 b) {
    asm volatile("{ .reg .pred p; setp.ne.b32 p, 0, 0; "
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
                 "{" NAMES_32 "}, %32, %33, p, 1, 1, 0, 0; }"
                 : REGISTERS_32("=f", c, 0)
                 : "l"(a), "l"(b));
}

// c (64 × 64) += a (64 × 16) · bᵀ, b (64 × 16).
DEVICE void multiply_add(float (&c)[8][4], u64 a, u64 b) {
    asm volatile("{ .reg .pred p; setp.eq.b32 p, 0, 0; "
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
                 "{" NAMES_32 "}, %32, %33, p, 1, 1, 0, 0; }"
                 : REGISTERS_32("+f", c, 0)
                 : "l"(a), "l"(b));
}

// c (64 × 128) = a (64 × 16) · bᵀ, b (128 × 16).
DEVICE void multiply(float (&c)[16][4], u64 a, u64 b) {
    asm volatile("{ .reg .pred p; setp.ne.b32 p, 0, 0; "
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
                 "{" NAMES_64 "}, %64, %65, p, 1, 1, 0, 0; }"
                 : REGISTERS_32("=f", c, 0), REGISTERS_32("=f", c, 8)
                 : "l"(a), "l"(b));
}

// c (64 × 128) += a (64 × 16) · bᵀ, b (128 × 16).
DEVICE void multiply_add(float (&c)[16][4], u64 a, u64 b) {
    asm volatile("{ .reg .pred p; setp.eq.b32 p, 0, 0; "
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
                 "{" NAMES_64 "}, %64, %65, p, 1, 1, 0, 0; }"
                 : REGISTERS_32("+f", c, 0), REGISTERS_32("+f", c, 8)
                 : "l"(a), "l"(b));
}

// c (64 × 64) += a (64 × 16) · b (16 × 64), b read by columns.
DEVICE void multiply_add_columns(float (&c)[8][4], const u32 (&a)[4], u64 b) {
    asm volatile("{ .reg .pred p; setp.eq.b32 p, 0, 0; "
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
                 "{" NAMES_32 "}, {%32, %33, %34, %35}, %36, p, 1, 1, 1; }"
                 : REGISTERS_32("+f", c, 0)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

// c (64 × 128) += a (64 × 16) · b (16 × 128), b read by columns.
DEVICE void multiply_add_columns(float (&c)[16][4], const u32 (&a)[4], u64 b) {
    asm volatile("{ .reg .pred p; setp.eq.b32 p, 0, 0; "
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
                 "{" NAMES_64 "}, {%64, %65, %66, %67}, %68, p, 1, 1, 1; }"
                 : REGISTERS_32("+f", c, 0), REGISTERS_32("+f", c, 8)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

// Makes what this thread's copies and stores left in shared memory visible to products, once a
// barrier follows.
DEVICE void publish_copies() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Orders what was done to registers before the products that follow.
DEVICE void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

// Closes a group of products.
DEVICE void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until at most `PENDING` groups are under way; `c` belongs to one that is done.
template <int PENDING, int N> DEVICE void wait_products(float (&c)[N][4]) {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
    // No use of the registers moves before the wait.
#pragma unroll
    for (int n = 0; n < N; n++) asm volatile("" : REGISTERS_4("+f", c, n)::"memory");
}
