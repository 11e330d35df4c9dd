// cuda.cu on an emulated block.
//
// stdin: the number of tensors, whether they have bf16 copies (int32), seven numbers of the step as
// in AdamWTable from `rate` on with `keep` first (f32), the length of each tensor (int32), then
// param, m, v and grad of each (f32). stdout: param, m, v (f32) and copy (bf16) of each after the
// step, Σ x² and its rounding error of each param (f32), and each grad after zeroing (f32).

#include "emulated.h"

#include "elements.cu"
#include "cuda.cu"

int main() {
    std::vector<int> sizes = read<int>(2);
    int count = sizes[0], with_copy = sizes[1];
    std::vector<float> numbers = read<float>(7);
    std::vector<int> lengths = read<int>(count);
    std::vector<std::vector<float>> param, m, v, grad;
    std::vector<std::vector<bf16>> copy;
    for (int length : lengths) {
        param.push_back(read<float>(length));
        m.push_back(read<float>(length));
        v.push_back(read<float>(length));
        grad.push_back(read<float>(length));
        copy.push_back(std::vector<bf16>(length));
    }
    static AdamWTable table;
    static SpanTable params, grads;
    int blocks = 0;
    for (int e = 0; e < count; e++) {
        table.entries[e] = {param[e].data(), m[e].data(), v[e].data(), grad[e].data(),
                            with_copy ? copy[e].data() : nullptr, lengths[e], numbers[0], blocks};
        params.entries[e] = {param[e].data(), lengths[e], blocks, 0};
        grads.entries[e] = {grad[e].data(), lengths[e], blocks, 0};
        blocks += pieces(lengths[e], BLOCK_ELEMENTS);
    }
    table.count = params.count = grads.count = count;
    params.blocks = grads.blocks = blocks;
    table.rate = numbers[1];
    table.root_correction = numbers[2];
    table.beta1 = numbers[3];
    table.beta2 = numbers[4];
    table.eps = numbers[5];
    table.grad_scale = numbers[6];

    launch(blocks, 1, 1, [&] { adamw(table); });
    std::vector<Sum> partial(blocks), totals(count);
    launch(blocks, 1, 1, [&] { sum_of_squares(params, partial.data()); });
    launch(count, 1, 1, [&] { sum_partials(params, partial.data(), totals.data()); });
    launch(blocks, 1, 1, [&] { zero(grads); });
    for (int e = 0; e < count; e++) {
        write(param[e]);
        write(m[e]);
        write(v[e]);
        write(copy[e]);
    }
    write(totals);
    for (int e = 0; e < count; e++) write(grad[e]);
    return 0;
}
