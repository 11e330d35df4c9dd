// Causal attention in bf16 on Hopper's tensor cores (Dao 2023; Shah et al. 2024), sm_90a: the
// kernels of mma.cu for products of a warpgroup, which read shared memory themselves and run
// while the weights of another step are computed.
//
// A warpgroup owns 64 rows of a tile. Probabilities stay in registers, and every gradient is summed
// by one warpgroup in a fixed order, without atomics: the backward pass computes the scores twice.

constexpr int WARPGROUPS = THREADS / 128;
constexpr int ROWS = 64 * WARPGROUPS; // that a block owns
constexpr int PANEL = 64;             // columns of a panel
static_assert(QUERY_ROWS == ROWS && KEY_ROWS == ROWS, "rows of a warpgroup");
static_assert(BUFFERS == 3, "one step is loaded while two are worked on");

// Element 8 · chunk of a row of a tile of SIDE rows.
template <int SIDE> DEVICE bf16* piece(bf16* tile, int row, int chunk) {
    return tile + chunk / 8 * SIDE * PANEL + row * PANEL + (((chunk ^ row) & 7) << 3);
}

// Rows first..first + SIDE of one head into a tile, rows from `count` on as zeros.
template <int SIDE>
DEVICE void load_tile(bf16* tile, const bf16* head, int first, int count, long long stride) {
    static_assert(SIDE * CHUNKS % THREADS == 0, "every thread copies as many pieces");
#pragma unroll 4
    for (int i = 0; i < SIDE * CHUNKS / THREADS; i++) {
        int e = i * THREADS + thread_index(), row = e / CHUNKS, chunk = e % CHUNKS;
        bool valid = first + row < count;
        copy_async(piece<SIDE>(tile, row, chunk), head + (valid ? first + row : 0) * stride + chunk * 8,
                   valid);
    }
}

// scores (64 rows of `left` from `row` on, 8 N columns) = their products with the rows of `right`.
template <int LEFT, int N>
DEVICE void row_products(float (&scores)[N][4], const bf16* left, int row, const bf16* right) {
    constexpr int RIGHT = 8 * N;
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
        int panel = k / 4, column = k % 4 * 16;
        u64 a = operand(left + (panel * LEFT + row) * PANEL + column, 16);
        u64 b = operand(right + panel * RIGHT * PANEL + column, 16);
        if (k == 0) multiply(scores, a, b);
        else multiply_add(scores, a, b);
    }
}

// sum (64 rows, D) += weights (64 rows, 8 N columns) · the 8 N rows of `right`.
template <int N>
DEVICE void add_weighted_rows(float (&sum)[D / 8][4], const u32 (&weights)[N / 2][4],
                              const bf16* right) {
    constexpr int RIGHT = 8 * N;
#pragma unroll
    for (int k = 0; k < N / 2; k++)
        multiply_add_columns(sum, weights[k], operand(right + 16 * k * PANEL, RIGHT * PANEL * 2));
}

// Weights, rounded to bf16, as the left operand of a product.
template <int N> DEVICE void pack_weights(u32 (&packed)[N / 2][4], const float (&weights)[N][4]) {
#pragma unroll
    for (int k = 0; k < N / 2; k++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            packed[k][i] = pack(weights[2 * k + i / 2][i % 2 * 2], weights[2 * k + i / 2][i % 2 * 2 + 1]);
}

template <int N> DEVICE void clear(float (&x)[N][4]) {
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) x[n][i] = 0.0f;
}

KERNEL void __launch_bounds__(THREADS, 1)
attention_forward(const bf16* q, const bf16* k, const bf16* v, const int* first_visible, bf16* o,
                  float* lse, int queries, int keys, int heads, int kv_heads, float scale) {
    constexpr int N = FORWARD_KEYS / 8, TILE = FORWARD_KEYS * D;
    bf16* q_tile = reinterpret_cast<bf16*>(shared_memory());
    bf16* k_tiles = q_tile + ROWS * D;
    bf16* v_tiles = k_tiles + 2 * TILE;

    // The longest rows first.
    int first_query = (blocks_x() - 1 - block_x()) * ROWS;
    int head = block_y(), batch = block_z(), kv_head = head / (heads / kv_heads);
    long long q_stride = (long long)heads * D, kv_stride = (long long)kv_heads * D;
    long long q_start = batch * queries * q_stride + head * D;
    long long kv_start = batch * keys * kv_stride + kv_head * D;
    float* lse_head = lse + ((long long)batch * heads + head) * queries;
    const int* visible_from = first_visible + (long long)batch * queries;

    int offset = keys - queries;
    int last_query = smaller(first_query + ROWS, queries) - 1;
    int first_key = first_tile(visible_from, first_query, last_query, FORWARD_KEYS);
    int end = smaller(last_query + offset + 1, keys);
    int steps = (end - first_key + FORWARD_KEYS - 1) / FORWARD_KEYS;

    auto load_keys = [&](int step) {
        load_tile<FORWARD_KEYS>(k_tiles + (step & 1) * TILE, k + kv_start,
                                first_key + step * FORWARD_KEYS, keys, kv_stride);
    };
    auto load_values = [&](int step) {
        load_tile<FORWARD_KEYS>(v_tiles + (step & 1) * TILE, v + kv_start,
                                first_key + step * FORWARD_KEYS, keys, kv_stride);
    };
    load_tile<ROWS>(q_tile, q + q_start, first_query, queries, q_stride);
    load_keys(0);
    commit_copies();
    if (steps > 1) load_keys(1);
    load_values(0);
    commit_copies();

    int lane = lane_index(), group_row = warp_index() / 4 * 64;
    int warp_row = first_query + warp_index() * 16;
    int first_row = warp_row + lane / 4; // of this lane, and 8 further
    float scale_log2 = scale * LOG2_E;
    float sum[D / 8][4], scores[N][4], row_max[2], row_sum[2], decay[2];
    u32 weights[N / 2][4];
    clear(sum);
    row_max[0] = row_max[1] = HIDDEN;
    row_sum[0] = row_sum[1] = 0.0f;

    // Scores of a step to weights, relative to the largest score so far.
    auto weigh = [&](int step) {
        int key = first_key + step * FORWARD_KEYS;
        if (BOUNDED || key + FORWARD_KEYS - 1 > warp_row + offset) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                int row = first_row + 8 * half;
                int from = BOUNDED ? visible_from[smaller(row, last_query)] : 0;
#pragma unroll
                for (int n = 0; n < N; n++)
#pragma unroll
                    for (int i = 0; i < 2; i++) {
                        int column = key + 8 * n + 2 * (lane & 3) + i;
                        if (column > row + offset || column < from) scores[n][2 * half + i] = HIDDEN;
                    }
            }
        }
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float largest = row_max[half];
#pragma unroll
            for (int n = 0; n < N; n++)
                largest = larger(largest, larger(scores[n][2 * half], scores[n][2 * half + 1]));
            largest = larger(largest, shuffle_xor(largest, 1));
            largest = larger(largest, shuffle_xor(largest, 2));
            // A row that has seen nothing keeps weights of zero.
            float base = largest <= HIDDEN ? 0.0f : largest * scale_log2;
            decay[half] = power_of_two(row_max[half] * scale_log2 - base);
            row_max[half] = largest;
            float total = 0.0f;
#pragma unroll
            for (int n = 0; n < N; n++)
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    float& score = scores[n][2 * half + i];
                    score = power_of_two(score * scale_log2 - base);
                    total += score;
                }
            row_sum[half] = row_sum[half] * decay[half] + total;
        }
    };

    wait_copies<1>();
    publish_copies();
    sync_block();
    begin_products();
    row_products<ROWS>(scores, q_tile, group_row, k_tiles);
    commit_products();
    wait_products<0>(scores);
    weigh(0);
    pack_weights(weights, scores);
    for (int step = 0; step + 1 < steps; step++) {
        wait_copies<0>();
        publish_copies();
        sync_block();
        if (step + 2 < steps) load_keys(step + 2);
        load_values(step + 1);
        commit_copies();
        // The next scores are weighed while these weights are multiplied.
        begin_products();
        row_products<ROWS>(scores, q_tile, group_row, k_tiles + ((step + 1) & 1) * TILE);
        commit_products();
        add_weighted_rows<N>(sum, weights, v_tiles + (step & 1) * TILE);
        commit_products();
        wait_products<1>(scores);
        weigh(step + 1);
        wait_products<0>(sum);
#pragma unroll
        for (int n = 0; n < D / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) sum[n][i] *= decay[i / 2];
        pack_weights(weights, scores);
    }
    wait_copies<0>();
    publish_copies();
    sync_block();
    begin_products();
    add_weighted_rows<N>(sum, weights, v_tiles + ((steps - 1) & 1) * TILE);
    commit_products();
    wait_products<0>(sum);

#pragma unroll
    for (int half = 0; half < 2; half++) {
        float total = row_sum[half];
        total += shuffle_xor(total, 1);
        total += shuffle_xor(total, 2);
        int row = first_row + 8 * half;
        if (row < queries) {
            float inverse = 1.0f / total;
            bf16* to = o + q_start + row * q_stride;
#pragma unroll
            for (int n = 0; n < D / 8; n++)
                store_pair(to, 8 * n + 2 * (lane & 3), sum[n][2 * half] * inverse,
                           sum[n][2 * half + 1] * inverse);
            if ((lane & 3) == 0) lse_head[row] = row_max[half] * scale + natural_log(total);
        }
    }
}

KERNEL void __launch_bounds__(THREADS, 1)
attention_query_gradient(const bf16* dout, const bf16* q, const bf16* k, const bf16* v,
                         const float* lse, const float* delta, const int* first_visible, bf16* dq,
                         int time, int heads, int kv_heads, float scale) {
    constexpr int N = GRADIENT_KEYS / 8, TILE = GRADIENT_KEYS * D;
    bf16* q_tile = reinterpret_cast<bf16*>(shared_memory());
    bf16* dout_tile = q_tile + ROWS * D;
    bf16* k_tiles = dout_tile + ROWS * D;
    bf16* v_tiles = k_tiles + BUFFERS * TILE;

    int first_query = (blocks_x() - 1 - block_x()) * ROWS;
    int head = block_y(), batch = block_z(), kv_head = head / (heads / kv_heads);
    long long q_stride = (long long)heads * D, kv_stride = (long long)kv_heads * D;
    long long q_start = batch * time * q_stride + head * D;
    long long kv_start = batch * time * kv_stride + kv_head * D;
    long long row_start = ((long long)batch * heads + head) * time;
    const int* visible_from = first_visible + (long long)batch * time;

    int last_query = smaller(first_query + ROWS, time) - 1;
    int key = first_tile(visible_from, first_query, last_query, GRADIENT_KEYS);
    int end = last_query + 1;

    auto load_step = [&](int first, int buffer) {
        load_tile<GRADIENT_KEYS>(k_tiles + buffer * TILE, k + kv_start, first, time, kv_stride);
        load_tile<GRADIENT_KEYS>(v_tiles + buffer * TILE, v + kv_start, first, time, kv_stride);
    };
    load_tile<ROWS>(q_tile, q + q_start, first_query, time, q_stride);
    load_tile<ROWS>(dout_tile, dout + q_start, first_query, time, q_stride);
    load_step(key, 0);
    commit_copies();

    int lane = lane_index(), group_row = warp_index() / 4 * 64;
    int warp_row = first_query + warp_index() * 16;
    int first_row = warp_row + lane / 4;
    float scale_log2 = scale * LOG2_E;
    float row_lse[2], row_delta[2];
    int row_from[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int row = smaller(first_row + 8 * half, last_query);
        row_lse[half] = lse[row_start + row] * LOG2_E;
        row_delta[half] = delta[row_start + row];
        row_from[half] = BOUNDED ? visible_from[row] : 0;
    }
    float sum[D / 8][4];
    clear(sum);

    int buffer = 0;
    // Not `while`: products are under way from one step to the next, and a way around them would
    // have the compiler wait for each.
    do {
        int next = buffer + 1 == BUFFERS ? 0 : buffer + 1;
        wait_copies<0>();
        publish_copies();
        sync_block();
        if (key + GRADIENT_KEYS < end) load_step(key + GRADIENT_KEYS, next);
        commit_copies();
        float scores[N][4], products[N][4], weights[N][4];
        u32 packed[N / 2][4];
        begin_products();
        row_products<ROWS>(scores, q_tile, group_row, k_tiles + buffer * TILE);
        commit_products();
        row_products<ROWS>(products, dout_tile, group_row, v_tiles + buffer * TILE);
        commit_products();
        wait_products<1>(scores);
        bool masked = BOUNDED || key + GRADIENT_KEYS - 1 > warp_row;
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int row = first_row + i / 2 * 8, column = key + 8 * n + 2 * (lane & 3) + i % 2;
                float weight = power_of_two(scores[n][i] * scale_log2 - row_lse[i / 2]);
                if (masked && (column > row || column < row_from[i / 2])) weight = 0.0f;
                weights[n][i] = weight;
            }
        wait_products<0>(products);
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) weights[n][i] *= products[n][i] - row_delta[i / 2];
        pack_weights(packed, weights);
        // Runs on while the next step's scores are computed.
        begin_products();
        add_weighted_rows<N>(sum, packed, k_tiles + buffer * TILE);
        commit_products();
        buffer = next;
        key += GRADIENT_KEYS;
    } while (key < end);
    wait_products<0>(sum);

#pragma unroll
    for (int half = 0; half < 2; half++) {
        int row = first_row + 8 * half;
        if (row < time) {
            bf16* to = dq + q_start + row * q_stride;
#pragma unroll
            for (int n = 0; n < D / 8; n++)
                store_pair(to, 8 * n + 2 * (lane & 3), sum[n][2 * half] * scale,
                           sum[n][2 * half + 1] * scale);
        }
    }
}

// What a step of dk and dv reads of each query besides its rows.
struct QueryColumns {
    float lse[STEP_QUERIES];   // times log₂ e; so large past the end that the weight is zero
    float delta[STEP_QUERIES];
    int from[STEP_QUERIES];
};

KERNEL void __launch_bounds__(THREADS, 1)
attention_key_value_gradient(const bf16* dout, const bf16* q, const bf16* k, const bf16* v,
                             const float* lse, const float* delta, const int* first_visible,
                             bf16* dk, bf16* dv, int time, int heads, int kv_heads, float scale) {
    constexpr int N = STEP_QUERIES / 8, TILE = STEP_QUERIES * D;
    bf16* k_tile = reinterpret_cast<bf16*>(shared_memory());
    bf16* v_tile = k_tile + ROWS * D;
    bf16* q_tiles = v_tile + ROWS * D;
    bf16* dout_tiles = q_tiles + BUFFERS * TILE;
    QueryColumns* columns = reinterpret_cast<QueryColumns*>(dout_tiles + BUFFERS * TILE);

    // The first keys are seen by the most queries.
    int first_key = block_x() * ROWS;
    int kv_head = block_y(), batch = block_z(), group = heads / kv_heads;
    long long q_stride = (long long)heads * D, kv_stride = (long long)kv_heads * D;
    long long kv_start = batch * time * kv_stride + kv_head * D;

    int lane = lane_index(), group_row = warp_index() / 4 * 64;
    int warp_row = first_key + warp_index() * 16;
    int first_row = warp_row + lane / 4;
    float scale_log2 = scale * LOG2_E;
    int first_step = first_key / STEP_QUERIES;
    int steps = (time + STEP_QUERIES - 1) / STEP_QUERIES - first_step; // of one head
    float dk_sum[D / 8][4], dv_sum[D / 8][4];
    clear(dk_sum);
    clear(dv_sum);

    // Steps count through the heads of the group, the queries of each in order.
    auto load_step = [&](int step, int buffer) {
        int head = kv_head * group + step / steps;
        int query = (first_step + step % steps) * STEP_QUERIES;
        long long q_start = batch * time * q_stride + head * D;
        load_tile<STEP_QUERIES>(q_tiles + buffer * TILE, q + q_start, query, time, q_stride);
        load_tile<STEP_QUERIES>(dout_tiles + buffer * TILE, dout + q_start, query, time, q_stride);
        if (thread_index() < STEP_QUERIES) {
            int t = query + thread_index();
            bool valid = t < time;
            long long row = ((long long)batch * heads + head) * time + t;
            QueryColumns& to = columns[buffer];
            to.lse[thread_index()] = valid ? lse[row] * LOG2_E : -HIDDEN;
            to.delta[thread_index()] = valid ? delta[row] : 0.0f;
            to.from[thread_index()] =
                BOUNDED && valid ? first_visible[(long long)batch * time + t] : 0;
        }
    };
    load_tile<ROWS>(k_tile, k + kv_start, first_key, time, kv_stride);
    load_tile<ROWS>(v_tile, v + kv_start, first_key, time, kv_stride);
    load_step(0, 0);
    commit_copies();

    int buffer = 0, step = 0;
    do { // not `while`, as above
        int next = buffer + 1 == BUFFERS ? 0 : buffer + 1;
        wait_copies<0>();
        publish_copies();
        sync_block();
        if (step + 1 < group * steps) load_step(step + 1, next);
        commit_copies();
        int query = (first_step + step % steps) * STEP_QUERIES;
        const bf16* q_tile = q_tiles + buffer * TILE;
        const bf16* dout_tile = dout_tiles + buffer * TILE;
        const QueryColumns& column = columns[buffer];
        float scores[N][4], products[N][4], weights[N][4];
        u32 packed_weights[N / 2][4], packed_gradients[N / 2][4];

        begin_products();
        row_products<ROWS>(scores, k_tile, group_row, q_tile);
        commit_products();
        row_products<ROWS>(products, v_tile, group_row, dout_tile);
        commit_products();
        wait_products<1>(scores);
        bool masked = BOUNDED || warp_row + 15 > query;
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int row = first_row + i / 2 * 8, c = 8 * n + 2 * (lane & 3) + i % 2;
                float weight = power_of_two(scores[n][i] * scale_log2 - column.lse[c]);
                if (masked && (row > query + c || (BOUNDED && row < column.from[c]))) weight = 0.0f;
                weights[n][i] = weight;
            }
        pack_weights(packed_weights, weights);
        begin_products();
        add_weighted_rows<N>(dv_sum, packed_weights, dout_tile);
        commit_products();
        wait_products<1>(products);
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                weights[n][i] *= products[n][i] - column.delta[8 * n + 2 * (lane & 3) + i % 2];
        pack_weights(packed_gradients, weights);
        begin_products();
        add_weighted_rows<N>(dk_sum, packed_gradients, q_tile);
        commit_products();
        buffer = next;
    } while (++step < group * steps);
    wait_products<0>(dv_sum);
    wait_products<0>(dk_sum);

#pragma unroll
    for (int half = 0; half < 2; half++) {
        int row = first_row + 8 * half;
        if (row < time) {
            bf16* dk_row = dk + kv_start + row * kv_stride;
            bf16* dv_row = dv + kv_start + row * kv_stride;
#pragma unroll
            for (int n = 0; n < D / 8; n++) {
                int c = 8 * n + 2 * (lane & 3);
                store_pair(dk_row, c, dk_sum[n][2 * half] * scale, dk_sum[n][2 * half + 1] * scale);
                store_pair(dv_row, c, dv_sum[n][2 * half], dv_sum[n][2 * half + 1]);
            }
        }
    }
}
