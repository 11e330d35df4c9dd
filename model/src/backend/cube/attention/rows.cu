// What the kernels of causal attention share, and delta = dout · o.
//
// q, o, dq, dout (B, T, H, D); k, v, dk, dv (B, T, K, D); lse, delta (B, H, T). Scores and sums are
// f32. Query i sees the keys up to i + Tk − Tq and, when BOUNDED, from first_visible[i] on. THREADS
// is the size of a block.

constexpr int D = HEAD_DIM;
constexpr int CHUNKS = D / 8;       // 16-byte pieces of a row
constexpr float HIDDEN = -1.0e30f;  // a masked score

// Two neighbouring elements of a row of a head.
DEVICE void store_pair(bf16* row, int column, float low, float high) {
    *reinterpret_cast<u32*>(row + column) = pack(low, high);
}

// The first key any of the queries first..=last may see, at the start of a tile of `side`.
DEVICE int first_tile(const int* first_visible, int first, int last, int side) {
    int key = 0;
#if BOUNDED
    // Below 2²⁴, so exact as floats.
    float smallest = first_visible[last];
    for (int t = first + lane_index(); t <= last; t += 32)
        smallest = -larger(-smallest, -float(first_visible[t]));
#pragma unroll
    for (int mask = 1; mask < 32; mask *= 2)
        smallest = -larger(-smallest, -shuffle_xor(smallest, mask));
    key = int(smallest) / side * side;
#endif
    return key;
}

// delta = dout · o of every row, 8 elements a thread.
KERNEL void __launch_bounds__(THREADS)
attention_row_products(const bf16* dout, const bf16* o, float* delta, int rows, int time,
                       int heads) {
    int e = block_x() * THREADS + thread_index();
    int row = e / CHUNKS; // of (B, T, H)
    float sum = 0.0f;
    if (row < rows) {
        const u32* left = reinterpret_cast<const u32*>(dout + (long long)e * 8);
        const u32* right = reinterpret_cast<const u32*>(o + (long long)e * 8);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            sum += low_half(left[i]) * low_half(right[i]);
            sum += high_half(left[i]) * high_half(right[i]);
        }
    }
#pragma unroll
    for (int mask = 1; mask < CHUNKS; mask *= 2) sum += shuffle_xor(sum, mask);
    if (row < rows && e % CHUNKS == 0) {
        int head = row % heads, t = row / heads % time, batch = row / heads / time;
        delta[((long long)batch * heads + head) * time + t] = sum;
    }
}
