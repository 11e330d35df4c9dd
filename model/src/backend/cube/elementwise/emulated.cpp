// cuda.cu on an emulated block.
//
// stdin: pieces, batch, time, heads, half (int32), gate, up, dy (bf16, 8 · pieces), x (bf16, B T H 16
// half), cos, sin (f32, T 8 half). stdout: gate + up, swiglu, dgate, dup (bf16), x rotated forward, x
// rotated back in place (bf16).

#include "emulated.h"

#include "elements.cu"
#include "cuda.cu"

static Eight* eights(std::vector<bf16>& x) { return reinterpret_cast<Eight*>(x.data()); }

int main() {
    std::vector<int> sizes = read<int>(5);
    int pieces_ = sizes[0], batch = sizes[1], time = sizes[2], heads = sizes[3], half = sizes[4];
    std::vector<bf16> gate = read<bf16>(8 * pieces_), up = read<bf16>(8 * pieces_);
    std::vector<bf16> dy = read<bf16>(8 * pieces_), y(gate.size()), dgate = y, dup = y;
    int pairs = batch * time * heads * half;
    std::vector<bf16> x = read<bf16>(16 * pairs), rotated(x.size());
    std::vector<float> cos = read<float>(8 * time * half), sin = read<float>(8 * time * half);

    int grid = pieces(pieces_, THREADS);
    launch(grid, 1, 1, [&] { residual_sum(eights(gate), eights(up), eights(y), pieces_); });
    write(y);
    launch(grid, 1, 1, [&] { swiglu_forward(eights(gate), eights(up), eights(y), pieces_); });
    write(y);
    launch(grid, 1, 1, [&] {
        swiglu_backward(eights(dy), eights(gate), eights(up), eights(dgate), eights(dup), pieces_);
    });
    write(dgate);
    write(dup);
    for (auto [to, direction] : {std::pair(&rotated, 1.0f), std::pair(&x, -1.0f)}) {
        launch(pieces(pairs, THREADS), 1, 1, [&] {
            rotate(eights(x), cos.data(), sin.data(), eights(*to), time, heads, half, direction,
                   pairs);
        });
        write(*to);
    }
    return 0;
}
