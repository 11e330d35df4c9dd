// Cross entropy of rows of f32 logits and its gradient in bf16, one block of THREADS a row.
//
// The first pass over a row finds its largest logit and Σ exp together (Milakov and Gimelshein
// 2018), so that the second, which writes the gradient, finds the row in the cache.

constexpr float LOWEST = -3.0e38f;

// Logits are read by eight.
DEVICE void load_eight(float (&z)[8], const float* row, int i) {
    const Four* from = reinterpret_cast<const Four*>(row) + 2 * i;
    Four low = from[0], high = from[1];
#pragma unroll
    for (int j = 0; j < 4; j++) {
        z[j] = low.x[j];
        z[j + 4] = high.x[j];
    }
}

// Σ exp of two parts of a row, each relative to its largest logit.
DEVICE void merge(float& largest, float& sum, float other_largest, float other_sum) {
    float both = larger(largest, other_largest);
    sum = sum * power_of_two((largest - both) * LOG2_E) +
          other_sum * power_of_two((other_largest - both) * LOG2_E);
    largest = both;
}

// Rows first.. of the losses: losses[first + row] = log Σ exp z − z[target], 0 where the target is
// negative; dlogits (rows, vocabulary) = scale · (softmax − onehot), unless null.
KERNEL void __launch_bounds__(THREADS)
cross_entropy(const float* logits, const int* targets, float* losses, bf16* dlogits, int first,
              int vocabulary, float scale) {
    float* scratch = reinterpret_cast<float*>(shared_memory());
    const float* row = logits + (long long)block_x() * vocabulary;
    int target = targets[first + block_x()];
    int pieces = vocabulary / 8;
    float largest = LOWEST, sum = 0.0f;
#pragma unroll 2
    for (int i = thread_index(); i < pieces; i += THREADS) {
        float z[8];
        load_eight(z, row, i);
        float most = z[0];
#pragma unroll
        for (int j = 1; j < 8; j++) most = larger(most, z[j]);
        if (most > largest) {
            sum *= power_of_two((largest - most) * LOG2_E);
            largest = most;
        }
#pragma unroll
        for (int j = 0; j < 8; j++) sum += power_of_two((z[j] - largest) * LOG2_E);
    }
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) {
        float other = shuffle_xor(largest, mask);
        merge(largest, sum, other, shuffle_xor(sum, mask));
    }
    if (lane_index() == 0) {
        scratch[2 * warp_index()] = largest;
        scratch[2 * warp_index() + 1] = sum;
    }
    sync_block();
    largest = scratch[0];
    sum = scratch[1];
    for (int w = 1; w < THREADS / 32; w++) merge(largest, sum, scratch[2 * w], scratch[2 * w + 1]);
    float lse = largest + natural_log(sum);
    if (thread_index() == 0) losses[first + block_x()] = target < 0 ? 0.0f : lse - row[target];
    if (!dlogits) return;

    float factor = target < 0 ? 0.0f : scale;
    Eight* out = reinterpret_cast<Eight*>(dlogits + (long long)block_x() * vocabulary);
#pragma unroll 2
    for (int i = thread_index(); i < pieces; i += THREADS) {
        float z[8];
        load_eight(z, row, i);
#pragma unroll
        for (int j = 0; j < 8; j++) {
            z[j] = power_of_two((z[j] - lse) * LOG2_E);
            if (8 * i + j == target) z[j] -= 1.0f;
            z[j] *= factor;
        }
        out[i] = pack_eight(z);
    }
}
