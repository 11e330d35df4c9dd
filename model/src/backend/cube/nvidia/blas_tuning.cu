// For the choice between algorithms of a product: operands, and whether two results are the same.

DEVICE u32 hash(u32 x) {
    x ^= x >> 16;
    x *= 0x7feb352du;
    x ^= x >> 15;
    x *= 0x846ca68bu;
    return x ^ x >> 16;
}

// Numbers from −1 to 1, two bf16 or one f32 in each of `count` words.
KERNEL void __launch_bounds__(THREADS)
fill_random(u32* words, long long count, int halves, u32 seed) {
    long long i = (long long)block_x() * THREADS + thread_index();
    if (i >= count) return;
    u32 bits = hash(u32(i) ^ seed);
    float low = float(int(bits & 0xffff) - 0x8000) / 0x8000;
    float high = float(int(bits >> 16) - 0x8000) / 0x8000;
    words[i] = halves ? pack(low, high) : __float_as_uint(low + high / 0x10000);
}

// *differ = 1 when a word of `a` is not that of `b`.
KERNEL void __launch_bounds__(THREADS)
compare(const u32* a, const u32* b, long long count, int* differ) {
    long long i = (long long)block_x() * THREADS + thread_index();
    if (i < count && a[i] != b[i]) *differ = 1;
}
