// What a layer does element by element in bf16: residual sums, SwiGLU, RoPE. A thread takes a piece of
// 8 elements.

DEVICE long long piece_index() { return (long long)block_x() * THREADS + thread_index(); }

// y = x + branch; y may be x.
KERNEL void __launch_bounds__(THREADS)
residual_sum(const Eight* x, const Eight* branch, Eight* y, long long pieces) {
    long long i = piece_index();
    if (i >= pieces) return;
    Eight left = x[i], right = branch[i];
    float sum[8];
#pragma unroll
    for (int j = 0; j < 8; j++) sum[j] = element(left, j) + element(right, j);
    y[i] = pack_eight(sum);
}

DEVICE float sigmoid(float x) { return 1.0f / (1.0f + power_of_two(-x * LOG2_E)); }

// y = silu(gate) · up.
KERNEL void __launch_bounds__(THREADS)
swiglu_forward(const Eight* gate, const Eight* up, Eight* y, long long pieces) {
    long long i = piece_index();
    if (i >= pieces) return;
    Eight g = gate[i], u = up[i];
    float product[8];
#pragma unroll
    for (int j = 0; j < 8; j++)
        product[j] = element(g, j) * sigmoid(element(g, j)) * element(u, j);
    y[i] = pack_eight(product);
}

// dgate = dy · up · σ (1 + g (1 − σ)), dup = dy · g σ.
KERNEL void __launch_bounds__(THREADS)
swiglu_backward(const Eight* dy, const Eight* gate, const Eight* up, Eight* dgate, Eight* dup,
                long long pieces) {
    long long i = piece_index();
    if (i >= pieces) return;
    Eight d = dy[i], g = gate[i], u = up[i];
    float to_gate[8], to_up[8];
#pragma unroll
    for (int j = 0; j < 8; j++) {
        float s = sigmoid(element(g, j));
        to_gate[j] = element(d, j) * element(u, j) * s * (1.0f + element(g, j) * (1.0f - s));
        to_up[j] = element(d, j) * element(g, j) * s;
    }
    dgate[i] = pack_eight(to_gate);
    dup[i] = pack_eight(to_up);
}

// x (B, T, H, 16 · half) rotated by cos, sin (T, 8 · half): y, which may be x. A thread rotates 8 pairs;
// `direction` is 1 forward, −1 backward.
KERNEL void __launch_bounds__(THREADS)
rotate(const Eight* x, const float* cos, const float* sin, Eight* y, int time, int heads, int half,
       float direction, long long pieces) {
    long long i = piece_index();
    if (i >= pieces) return;
    long long head = i / half; // of (B, T, H)
    int chunk = i % half, t = head / heads % time;
    long long low_at = head * 2 * half + chunk, high_at = low_at + half;
    Eight low = x[low_at], high = x[high_at];
    const float* c = cos + ((long long)t * half + chunk) * 8;
    const float* s = sin + ((long long)t * half + chunk) * 8;
    float rotated_low[8], rotated_high[8];
#pragma unroll
    for (int j = 0; j < 8; j++) {
        float cosine = c[j], sine = s[j] * direction;
        rotated_low[j] = element(low, j) * cosine - element(high, j) * sine;
        rotated_high[j] = element(high, j) * cosine + element(low, j) * sine;
    }
    y[low_at] = pack_eight(rotated_low);
    y[high_at] = pack_eight(rotated_high);
}
