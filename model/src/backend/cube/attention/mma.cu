// Causal attention in bf16 on tensor cores (Dao 2023), forward and backward: sm_80 and later.
//
// A block owns QUERY_ROWS (forward and dq) or KEY_ROWS (dk and dv). A step takes FORWARD_KEYS,
// GRADIENT_KEYS (dq) or STEP_QUERIES (dk and dv).
//
// Every product leaves its rows in one warp's registers in the layout the next product reads as its
// left operand, so probabilities never pass through memory. The backward pass is two kernels, one
// that owns tiles of queries (dq) and one that owns tiles of keys (dk, dv): scores are computed
// twice, and every gradient is summed by one warp in a fixed order, without atomics.

constexpr int WARPS = THREADS / 32;
static_assert(QUERY_ROWS % (16 * WARPS) == 0 && KEY_ROWS == 16 * WARPS, "rows of a warp");
static_assert(BUFFERS == 2, "steps take turns by their lowest bit");

// Element 8 · chunk of a row of a tile. The pieces of a row are permuted by its number, so that
// the same piece of 8 rows lies in different banks.
DEVICE bf16* piece(bf16* tile, int row, int chunk) {
    return tile + row * D + ((chunk ^ (row & 7)) << 3);
}

// Rows first..first + ROWS of one head into a tile, rows from `count` on as zeros.
template <int ROWS>
DEVICE void load_tile(bf16* tile, const bf16* head, int first, int count, long long stride) {
    for (int e = thread_index(); e < ROWS * CHUNKS; e += THREADS) {
        int row = e / CHUNKS, chunk = e % CHUNKS;
        bool valid = first + row < count;
        copy_async(piece(tile, row, chunk), head + (valid ? first + row : 0) * stride + chunk * 8,
                   valid);
    }
}

// Rows row..row + 15, columns 16 k..: the left operand.
DEVICE void load_left(u32 (&a)[4], bf16* tile, int row, int k) {
    int lane = lane_index();
    load_matrices(a, piece(tile, row + (lane & 15), 2 * k + (lane >> 4)));
}

// Rows row..row + 15 as 16 columns of the right operand, 16 k.. of its rows: two operands.
DEVICE void load_right(u32 (&b)[4], bf16* tile, int row, int k) {
    int lane = lane_index();
    load_matrices(b, piece(tile, row + (lane & 7) + (lane >> 4) * 8, 2 * k + ((lane >> 3) & 1)));
}

// Rows row..row + 15 as rows of the right operand, its columns 16 n..: two operands.
DEVICE void load_right_rows(u32 (&b)[4], bf16* tile, int row, int n) {
    int lane = lane_index();
    load_matrices_transposed(b, piece(tile, row + (lane & 15), 2 * n + (lane >> 4)));
}

template <int M, int N> DEVICE void clear(float (&x)[M][N][4]) {
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) x[m][n][i] = 0.0f;
}

// scores (16 M rows, 8 N columns) = rows of `left` from `row` on · the first 8 N rows of `right`.
template <int M, int N>
DEVICE void row_products(float (&scores)[M][N][4], bf16* left, int row, bf16* right) {
    clear(scores);
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
        u32 a[M][4];
#pragma unroll
        for (int m = 0; m < M; m++) load_left(a[m], left, row + 16 * m, k);
#pragma unroll
        for (int n = 0; n < N / 2; n++) {
            u32 b[4];
            load_right(b, right, 16 * n, k);
#pragma unroll
            for (int m = 0; m < M; m++) {
                multiply_add(scores[m][2 * n], a[m], b[0], b[1]);
                multiply_add(scores[m][2 * n + 1], a[m], b[2], b[3]);
            }
        }
    }
}

// sum (16 M rows, D) += weights (16 M rows, 8 N columns), rounded to bf16 · the rows of `right`.
template <int M, int N>
DEVICE void add_weighted_rows(float (&sum)[M][D / 8][4], float (&weights)[M][N][4], bf16* right) {
#pragma unroll
    for (int k = 0; k < N / 2; k++) {
        u32 a[M][4];
#pragma unroll
        for (int m = 0; m < M; m++) {
            a[m][0] = pack(weights[m][2 * k][0], weights[m][2 * k][1]);
            a[m][1] = pack(weights[m][2 * k][2], weights[m][2 * k][3]);
            a[m][2] = pack(weights[m][2 * k + 1][0], weights[m][2 * k + 1][1]);
            a[m][3] = pack(weights[m][2 * k + 1][2], weights[m][2 * k + 1][3]);
        }
#pragma unroll
        for (int n = 0; n < D / 16; n++) {
            u32 b[4];
            load_right_rows(b, right, 16 * k, n);
#pragma unroll
            for (int m = 0; m < M; m++) {
                multiply_add(sum[m][2 * n], a[m], b[0], b[1]);
                multiply_add(sum[m][2 * n + 1], a[m], b[2], b[3]);
            }
        }
    }
}

KERNEL void __launch_bounds__(THREADS)
attention_forward(const bf16* q, const bf16* k, const bf16* v, const int* first_visible, bf16* o,
                  float* lse, int queries, int keys, int heads, int kv_heads, float scale) {
    constexpr int M = QUERY_ROWS / WARPS / 16, N = FORWARD_KEYS / 8;
    bf16* q_tile = reinterpret_cast<bf16*>(shared_memory());
    bf16* k_tiles = q_tile + QUERY_ROWS * D;
    bf16* v_tiles = k_tiles + 2 * FORWARD_KEYS * D;

    // The longest rows first.
    int first_query = (blocks_x() - 1 - block_x()) * QUERY_ROWS;
    int head = block_y(), batch = block_z(), kv_head = head / (heads / kv_heads);
    long long q_stride = (long long)heads * D, kv_stride = (long long)kv_heads * D;
    const bf16* q_head = q + batch * queries * q_stride + head * D;
    const bf16* k_head = k + batch * keys * kv_stride + kv_head * D;
    const bf16* v_head = v + batch * keys * kv_stride + kv_head * D;
    bf16* o_head = o + batch * queries * q_stride + head * D;
    float* lse_head = lse + ((long long)batch * heads + head) * queries;
    const int* visible_from = first_visible + (long long)batch * queries;

    int offset = keys - queries;
    int last_query = smaller(first_query + QUERY_ROWS, queries) - 1;
    int key = first_tile(visible_from, first_query, last_query, FORWARD_KEYS);
    int end = smaller(last_query + offset + 1, keys);

    load_tile<QUERY_ROWS>(q_tile, q_head, first_query, queries, q_stride);
    load_tile<FORWARD_KEYS>(k_tiles, k_head, key, keys, kv_stride);
    load_tile<FORWARD_KEYS>(v_tiles, v_head, key, keys, kv_stride);
    commit_copies();

    int lane = lane_index();
    int warp_row = warp_index() * 16 * M;
    int first_row = first_query + warp_row + lane / 4; // of this lane, then 8 and 16 m further
    float scale_log2 = scale * LOG2_E;
    float sum[M][D / 8][4];
    float scores[M][N][4];
    float row_max[M][2], row_sum[M][2];
    clear(sum);
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            row_max[m][half] = HIDDEN;
            row_sum[m][half] = 0.0f;
        }

    for (int step = 0; key < end; step++, key += FORWARD_KEYS) {
        int buffer = (step & 1) * FORWARD_KEYS * D;
        if (key + FORWARD_KEYS < end) {
            int next = FORWARD_KEYS * D - buffer;
            load_tile<FORWARD_KEYS>(k_tiles + next, k_head, key + FORWARD_KEYS, keys, kv_stride);
            load_tile<FORWARD_KEYS>(v_tiles + next, v_head, key + FORWARD_KEYS, keys, kv_stride);
        }
        commit_copies();
        wait_copies<1>();
        sync_block();
        row_products<M, N>(scores, q_tile, warp_row, k_tiles + buffer);

        if (BOUNDED || key + FORWARD_KEYS - 1 > first_query + warp_row + offset) {
#pragma unroll
            for (int m = 0; m < M; m++)
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    int row = first_row + 16 * m + 8 * half;
                    int from = BOUNDED ? visible_from[smaller(row, last_query)] : 0;
#pragma unroll
                    for (int n = 0; n < N; n++)
#pragma unroll
                        for (int i = 0; i < 2; i++) {
                            int column = key + 8 * n + 2 * (lane & 3) + i;
                            if (column > row + offset || column < from)
                                scores[m][n][2 * half + i] = HIDDEN;
                        }
                }
        }
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float largest = row_max[m][half];
#pragma unroll
                for (int n = 0; n < N; n++) {
                    largest = larger(largest, scores[m][n][2 * half]);
                    largest = larger(largest, scores[m][n][2 * half + 1]);
                }
                largest = larger(largest, shuffle_xor(largest, 1));
                largest = larger(largest, shuffle_xor(largest, 2));
                // A row that has seen nothing keeps weights of zero.
                float base = largest <= HIDDEN ? 0.0f : largest * scale_log2;
                float decay = power_of_two(row_max[m][half] * scale_log2 - base);
                row_max[m][half] = largest;
                float total = 0.0f;
#pragma unroll
                for (int n = 0; n < N; n++)
#pragma unroll
                    for (int i = 0; i < 2; i++) {
                        float& score = scores[m][n][2 * half + i];
                        score = power_of_two(score * scale_log2 - base);
                        total += score;
                    }
                row_sum[m][half] = row_sum[m][half] * decay + total;
#pragma unroll
                for (int n = 0; n < D / 8; n++) {
                    sum[m][n][2 * half] *= decay;
                    sum[m][n][2 * half + 1] *= decay;
                }
            }
        add_weighted_rows<M, N>(sum, scores, v_tiles + buffer);
        sync_block();
    }

#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float total = row_sum[m][half];
            total += shuffle_xor(total, 1);
            total += shuffle_xor(total, 2);
            int row = first_row + 16 * m + 8 * half;
            if (row < queries) {
                float inverse = 1.0f / total;
                bf16* to = o_head + row * q_stride;
#pragma unroll
                for (int n = 0; n < D / 8; n++)
                    store_pair(to, 8 * n + 2 * (lane & 3), sum[m][n][2 * half] * inverse,
                               sum[m][n][2 * half + 1] * inverse);
                if ((lane & 3) == 0)
                    lse_head[row] = row_max[m][half] * scale + natural_log(total);
            }
        }
}

KERNEL void __launch_bounds__(THREADS)
attention_query_gradient(const bf16* dout, const bf16* q, const bf16* k, const bf16* v,
                         const float* lse, const float* delta, const int* first_visible, bf16* dq,
                         int time, int heads, int kv_heads, float scale) {
    constexpr int M = QUERY_ROWS / WARPS / 16, N = GRADIENT_KEYS / 8;
    bf16* q_tile = reinterpret_cast<bf16*>(shared_memory());
    bf16* dout_tile = q_tile + QUERY_ROWS * D;
    bf16* k_tiles = dout_tile + QUERY_ROWS * D;
    bf16* v_tiles = k_tiles + 2 * GRADIENT_KEYS * D;

    int first_query = (blocks_x() - 1 - block_x()) * QUERY_ROWS;
    int head = block_y(), batch = block_z(), kv_head = head / (heads / kv_heads);
    long long q_stride = (long long)heads * D, kv_stride = (long long)kv_heads * D;
    long long q_start = batch * time * q_stride + head * D;
    long long kv_start = batch * time * kv_stride + kv_head * D;
    long long row_start = ((long long)batch * heads + head) * time;
    const int* visible_from = first_visible + (long long)batch * time;

    int last_query = smaller(first_query + QUERY_ROWS, time) - 1;
    int key = first_tile(visible_from, first_query, last_query, GRADIENT_KEYS);
    int end = last_query + 1;

    load_tile<QUERY_ROWS>(q_tile, q + q_start, first_query, time, q_stride);
    load_tile<QUERY_ROWS>(dout_tile, dout + q_start, first_query, time, q_stride);
    load_tile<GRADIENT_KEYS>(k_tiles, k + kv_start, key, time, kv_stride);
    load_tile<GRADIENT_KEYS>(v_tiles, v + kv_start, key, time, kv_stride);
    commit_copies();

    int lane = lane_index();
    int warp_row = warp_index() * 16 * M;
    int first_row = first_query + warp_row + lane / 4;
    float scale_log2 = scale * LOG2_E;
    float row_lse[M][2], row_delta[M][2];
    int row_from[M][2];
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int row = smaller(first_row + 16 * m + 8 * half, last_query);
            row_lse[m][half] = lse[row_start + row] * LOG2_E;
            row_delta[m][half] = delta[row_start + row];
            row_from[m][half] = BOUNDED ? visible_from[row] : 0;
        }
    float sum[M][D / 8][4];
    float scores[M][N][4], products[M][N][4];
    clear(sum);

    for (int step = 0; key < end; step++, key += GRADIENT_KEYS) {
        int buffer = (step & 1) * GRADIENT_KEYS * D;
        if (key + GRADIENT_KEYS < end) {
            int next = GRADIENT_KEYS * D - buffer;
            load_tile<GRADIENT_KEYS>(k_tiles + next, k + kv_start, key + GRADIENT_KEYS, time,
                                     kv_stride);
            load_tile<GRADIENT_KEYS>(v_tiles + next, v + kv_start, key + GRADIENT_KEYS, time,
                                     kv_stride);
        }
        commit_copies();
        wait_copies<1>();
        sync_block();
        row_products<M, N>(scores, q_tile, warp_row, k_tiles + buffer);
        row_products<M, N>(products, dout_tile, warp_row, v_tiles + buffer);
        bool masked = BOUNDED || key + GRADIENT_KEYS - 1 > first_query + warp_row;
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                int row = first_row + 16 * m + 8 * half;
#pragma unroll
                for (int n = 0; n < N; n++)
#pragma unroll
                    for (int i = 0; i < 2; i++) {
                        int column = key + 8 * n + 2 * (lane & 3) + i;
                        float& score = scores[m][n][2 * half + i];
                        float weight = power_of_two(score * scale_log2 - row_lse[m][half]);
                        if (masked && (column > row || column < row_from[m][half])) weight = 0.0f;
                        score = weight * (products[m][n][2 * half + i] - row_delta[m][half]);
                    }
            }
        add_weighted_rows<M, N>(sum, scores, k_tiles + buffer);
        sync_block();
    }

#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int row = first_row + 16 * m + 8 * half;
            if (row < time) {
                bf16* to = dq + q_start + row * q_stride;
#pragma unroll
                for (int n = 0; n < D / 8; n++)
                    store_pair(to, 8 * n + 2 * (lane & 3), sum[m][n][2 * half] * scale,
                               sum[m][n][2 * half + 1] * scale);
            }
        }
}

// What a step of dk and dv reads of each query besides its rows.
struct QueryColumns {
    float lse[STEP_QUERIES];   // times log₂ e; so large past the end that the weight is zero
    float delta[STEP_QUERIES];
    int from[STEP_QUERIES];
};

KERNEL void __launch_bounds__(THREADS)
attention_key_value_gradient(const bf16* dout, const bf16* q, const bf16* k, const bf16* v,
                             const float* lse, const float* delta, const int* first_visible,
                             bf16* dk, bf16* dv, int time, int heads, int kv_heads, float scale) {
    constexpr int N = STEP_QUERIES / 8;
    bf16* k_tile = reinterpret_cast<bf16*>(shared_memory());
    bf16* v_tile = k_tile + KEY_ROWS * D;
    bf16* q_tiles = v_tile + KEY_ROWS * D;
    bf16* dout_tiles = q_tiles + 2 * STEP_QUERIES * D;
    QueryColumns* columns = reinterpret_cast<QueryColumns*>(dout_tiles + 2 * STEP_QUERIES * D);

    // The first keys are seen by the most queries.
    int first_key = block_x() * KEY_ROWS;
    int kv_head = block_y(), batch = block_z(), group = heads / kv_heads;
    long long q_stride = (long long)heads * D, kv_stride = (long long)kv_heads * D;
    long long kv_start = batch * time * kv_stride + kv_head * D;

    load_tile<KEY_ROWS>(k_tile, k + kv_start, first_key, time, kv_stride);
    load_tile<KEY_ROWS>(v_tile, v + kv_start, first_key, time, kv_stride);

    int lane = lane_index();
    int warp_row = warp_index() * 16;
    int first_row = first_key + warp_row + lane / 4;
    float scale_log2 = scale * LOG2_E;
    int first_step = first_key / STEP_QUERIES;
    int steps = (time + STEP_QUERIES - 1) / STEP_QUERIES - first_step; // of one head
    float dk_sum[1][D / 8][4], dv_sum[1][D / 8][4];
    float scores[1][N][4], products[1][N][4];
    clear(dk_sum);
    clear(dv_sum);

    // Steps count through the heads of the group, the queries of each in order.
    auto load_step = [&](int step) {
        int head = kv_head * group + step / steps;
        int query = (first_step + step % steps) * STEP_QUERIES;
        int buffer = (step & 1) * STEP_QUERIES * D;
        long long q_start = batch * time * q_stride + head * D;
        load_tile<STEP_QUERIES>(q_tiles + buffer, q + q_start, query, time, q_stride);
        load_tile<STEP_QUERIES>(dout_tiles + buffer, dout + q_start, query, time, q_stride);
        if (thread_index() < STEP_QUERIES) {
            int t = query + thread_index();
            bool valid = t < time;
            long long row = ((long long)batch * heads + head) * time + t;
            QueryColumns& to = columns[step & 1];
            to.lse[thread_index()] = valid ? lse[row] * LOG2_E : -HIDDEN;
            to.delta[thread_index()] = valid ? delta[row] : 0.0f;
            to.from[thread_index()] =
                BOUNDED && valid ? first_visible[(long long)batch * time + t] : 0;
        }
    };
    load_step(0);
    commit_copies();

    for (int step = 0; step < group * steps; step++) {
        if (step + 1 < group * steps) load_step(step + 1);
        commit_copies();
        wait_copies<1>();
        sync_block();
        int query = (first_step + step % steps) * STEP_QUERIES;
        bf16* q_tile = q_tiles + (step & 1) * STEP_QUERIES * D;
        bf16* dout_tile = dout_tiles + (step & 1) * STEP_QUERIES * D;
        const QueryColumns& column = columns[step & 1];

        row_products<1, N>(scores, k_tile, warp_row, q_tile);
        bool masked = BOUNDED || first_key + warp_row + 15 > query;
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int row = first_row + 8 * (i / 2);
                int c = 8 * n + 2 * (lane & 3) + i % 2;
                float weight = power_of_two(scores[0][n][i] * scale_log2 - column.lse[c]);
                if (masked && (row > query + c || (BOUNDED && row < column.from[c]))) weight = 0.0f;
                scores[0][n][i] = weight;
            }
        add_weighted_rows<1, N>(dv_sum, scores, dout_tile);
        row_products<1, N>(products, v_tile, warp_row, dout_tile);
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int c = 8 * n + 2 * (lane & 3) + i % 2;
                scores[0][n][i] *= products[0][n][i] - column.delta[c];
            }
        add_weighted_rows<1, N>(dk_sum, scores, q_tile);
        sync_block();
    }

#pragma unroll
    for (int half = 0; half < 2; half++) {
        int row = first_row + 8 * half;
        if (row < time) {
            bf16* dk_row = dk + kv_start + row * kv_stride;
            bf16* dv_row = dv + kv_start + row * kv_stride;
#pragma unroll
            for (int n = 0; n < D / 8; n++) {
                int c = 8 * n + 2 * (lane & 3);
                store_pair(dk_row, c, dk_sum[0][n][2 * half] * scale,
                           dk_sum[0][n][2 * half + 1] * scale);
                store_pair(dv_row, c, dv_sum[0][n][2 * half], dv_sum[0][n][2 * half + 1]);
            }
        }
    }
}
