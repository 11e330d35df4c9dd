// What the kernels of several files share: numbers read 16 bytes at a time, and a few functions.

constexpr float LOG2_E = 1.4426950408889634f;

struct alignas(16) Four {
    float x[4];
};

// Eight bf16.
struct alignas(16) Eight {
    u32 x[4];
};

DEVICE float element(const Eight& packed, int i) {
    return i % 2 ? high_half(packed.x[i / 2]) : low_half(packed.x[i / 2]);
}

DEVICE Eight pack_eight(const float (&x)[8]) {
    Eight packed;
#pragma unroll
    for (int i = 0; i < 4; i++) packed.x[i] = pack(x[2 * i], x[2 * i + 1]);
    return packed;
}

DEVICE int smaller(int a, int b) { return a < b ? a : b; }
DEVICE float larger(float a, float b) { return a > b ? a : b; }
