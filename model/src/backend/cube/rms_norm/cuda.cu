// RMSNorm of bf16 rows of CHANNELS with the residual connections around it, forward and backward.
//
// ROW_WARPS warps share a row and keep it in registers between the sum over it and its result.
// weight, rstd and the sums are f32. A block has THREADS threads.

constexpr int ROW_THREADS = 32 * ROW_WARPS;
constexpr int GROUPS = THREADS / ROW_THREADS; // rows a block works on at once
constexpr int CHUNKS = CHANNELS / 8;
constexpr int PIECES = (CHUNKS + ROW_THREADS - 1) / ROW_THREADS; // 16-byte pieces of a thread
constexpr int SUM_ROWS = THREADS / SUM_CHANNELS; // that a block of add_rows reads at once
static_assert(SUM_CHANNELS == 32, "a lane adds up a channel");

struct alignas(16) EightFloats {
    float x[8];
};

DEVICE const Eight& eight(const bf16* row, int chunk) {
    return reinterpret_cast<const Eight*>(row)[chunk];
}

// Σ over the threads of a row, in each of them. All threads of the block come here.
DEVICE float row_sum(float x) {
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) x += shuffle_xor(x, mask);
    if (ROW_WARPS > 1) {
        float* sums = reinterpret_cast<float*>(shared_memory());
        sync_block(); // the sums of the row before have been read
        if (lane_index() == 0) sums[warp_index()] = x;
        sync_block();
        x = 0.0f;
#pragma unroll
        for (int w = 0; w < ROW_WARPS; w++) x += sums[warp_index() / ROW_WARPS * ROW_WARPS + w];
    }
    return x;
}

// h = x + branch, or x where branch is null; y = h · rstd · weight.
KERNEL void __launch_bounds__(THREADS)
rms_norm_forward(const bf16* x, const bf16* branch, const float* weight, bf16* h, bf16* y,
                 float* rstd, int rows, float eps) {
    int row = block_x() * GROUPS + thread_index() / ROW_THREADS;
    int first = thread_index() % ROW_THREADS;
    bool valid = row < rows;
    long long start = (long long)(valid ? row : 0) * CHANNELS;
    Eight kept[PIECES];
    float squares = 0.0f;
#pragma unroll
    for (int p = 0; p < PIECES; p++) {
        int chunk = first + p * ROW_THREADS;
        if (chunk < CHUNKS) kept[p] = eight(x + start, chunk);
    }
    if (branch) {
#pragma unroll
        for (int p = 0; p < PIECES; p++) {
            int chunk = first + p * ROW_THREADS;
            if (chunk >= CHUNKS) continue;
            const Eight& other = eight(branch + start, chunk);
            float sum[8];
#pragma unroll
            for (int i = 0; i < 8; i++) sum[i] = element(kept[p], i) + element(other, i);
            kept[p] = pack_eight(sum);
            if (valid) reinterpret_cast<Eight*>(h + start)[chunk] = kept[p];
        }
    }
#pragma unroll
    for (int p = 0; p < PIECES; p++)
        if (first + p * ROW_THREADS < CHUNKS)
#pragma unroll
            for (int i = 0; i < 8; i++) squares += element(kept[p], i) * element(kept[p], i);
    float r = 1.0f / square_root(row_sum(squares) / CHANNELS + eps);
    if (!valid) return;
    if (first == 0) rstd[row] = r;
#pragma unroll
    for (int p = 0; p < PIECES; p++) {
        int chunk = first + p * ROW_THREADS;
        if (chunk >= CHUNKS) continue;
        const EightFloats& gain = reinterpret_cast<const EightFloats*>(weight)[chunk];
        float normed[8];
#pragma unroll
        for (int i = 0; i < 8; i++) normed[i] = element(kept[p], i) * r * gain.x[i];
        reinterpret_cast<Eight*>(y + start)[chunk] = pack_eight(normed);
    }
}

// dx of `block_rows` rows, a multiple of GROUPS, plus `stream` where it is not null, and their part
// of dweight in the block's row of `partial` (blocks, CHANNELS).
KERNEL void __launch_bounds__(THREADS)
rms_norm_backward(const bf16* dy, const bf16* x, const float* weight, const float* rstd,
                  const bf16* stream, bf16* dx, float* partial, int rows, int block_rows) {
    int group = thread_index() / ROW_THREADS, first = thread_index() % ROW_THREADS;
    float dweight[PIECES][8];
#pragma unroll
    for (int p = 0; p < PIECES; p++)
#pragma unroll
        for (int i = 0; i < 8; i++) dweight[p][i] = 0.0f;

    for (int step = 0; step < block_rows; step += GROUPS) {
        int row = block_x() * block_rows + step + group;
        bool valid = row < rows;
        long long start = (long long)(valid ? row : 0) * CHANNELS;
        float r = valid ? rstd[row] : 0.0f;
        Eight gradient[PIECES], input[PIECES];
        float products = 0.0f;
#pragma unroll
        for (int p = 0; p < PIECES; p++) {
            int chunk = first + p * ROW_THREADS;
            if (chunk >= CHUNKS) continue;
            gradient[p] = eight(dy + start, chunk);
            input[p] = eight(x + start, chunk);
        }
#pragma unroll
        for (int p = 0; p < PIECES; p++) {
            int chunk = first + p * ROW_THREADS;
            if (chunk >= CHUNKS) continue;
            const EightFloats& gain = reinterpret_cast<const EightFloats*>(weight)[chunk];
#pragma unroll
            for (int i = 0; i < 8; i++) {
                // r is 0 past the last row.
                float product = element(gradient[p], i) * (element(input[p], i) * r);
                dweight[p][i] += product;
                products += product * gain.x[i];
            }
        }
        float mean = row_sum(products) / CHANNELS;
        if (!valid) continue;
#pragma unroll
        for (int p = 0; p < PIECES; p++) {
            int chunk = first + p * ROW_THREADS;
            if (chunk >= CHUNKS) continue;
            const EightFloats& gain = reinterpret_cast<const EightFloats*>(weight)[chunk];
            float out[8];
#pragma unroll
            for (int i = 0; i < 8; i++)
                out[i] = r * (element(gradient[p], i) * gain.x[i] - element(input[p], i) * r * mean);
            if (stream) {
                const Eight& above = eight(stream + start, chunk);
#pragma unroll
                for (int i = 0; i < 8; i++) out[i] += element(above, i);
            }
            reinterpret_cast<Eight*>(dx + start)[chunk] = pack_eight(out);
        }
    }

    // The groups' parts, added in order.
    float* sums = reinterpret_cast<float*>(shared_memory());
    sync_block();
#pragma unroll
    for (int p = 0; p < PIECES; p++) {
        int chunk = first + p * ROW_THREADS;
        if (chunk >= CHUNKS) continue;
#pragma unroll
        for (int i = 0; i < 8; i++) sums[group * CHANNELS + 8 * chunk + i] = dweight[p][i];
    }
    sync_block();
    for (int c = thread_index(); c < CHANNELS; c += THREADS) {
        float total = 0.0f;
#pragma unroll
        for (int g = 0; g < GROUPS; g++) total += sums[g * CHANNELS + c];
        partial[(long long)block_x() * CHANNELS + c] = total;
    }
}

// dweight += the rows of `partial`: SUM_CHANNELS channels a block, the rows dealt out to its warps.
KERNEL void __launch_bounds__(THREADS)
rms_norm_add_rows(const float* partial, float* dweight, int rows) {
    int c = block_x() * SUM_CHANNELS + lane_index();
    float* sums = reinterpret_cast<float*>(shared_memory());
    float total = 0.0f;
    if (c < CHANNELS)
#pragma unroll 8
        for (int row = warp_index(); row < rows; row += SUM_ROWS)
            total += partial[(long long)row * CHANNELS + c];
    sums[thread_index()] = total;
    sync_block();
    if (warp_index() > 0 || c >= CHANNELS) return;
    total = 0.0f;
#pragma unroll
    for (int w = 0; w < SUM_ROWS; w++) total += sums[SUM_CHANNELS * w + lane_index()];
    dweight[c] += total;
}
