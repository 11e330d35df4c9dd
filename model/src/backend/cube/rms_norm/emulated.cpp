// cuda.cu on an emulated block.
//
// stdin: the number of rows, whether there is a residual stream, rows of a block of the backward
// pass (int32), x, branch, dy, stream (bf16), weight, dweight (f32). stdout: h, y (bf16), rstd
// (f32), dx (bf16), dweight (f32).

#include "emulated.h"

#include "elements.cu"
#include "cuda.cu"

int main() {
    std::vector<int> numbers = read<int>(3);
    int rows = numbers[0], block_rows = numbers[2];
    bool residual = numbers[1];
    size_t size = size_t(rows) * CHANNELS;
    std::vector<bf16> x = read<bf16>(size), branch = read<bf16>(size), dy = read<bf16>(size);
    std::vector<bf16> stream = read<bf16>(size), h = x, y(size);
    // Read 16 and 32 bytes at a time.
    alignas(32) static float weight[CHANNELS];
    std::vector<float> gains = read<float>(CHANNELS), dweight = read<float>(CHANNELS), rstd(rows);
    std::copy(gains.begin(), gains.end(), weight);
    launch(pieces(rows, GROUPS), 1, 1, [&] {
        rms_norm_forward(x.data(), residual ? branch.data() : nullptr, weight, h.data(), y.data(),
                         rstd.data(), rows, 1e-6f);
    });
    int blocks = pieces(rows, block_rows);
    std::vector<float> partial(size_t(blocks) * CHANNELS);
    // In place, as it runs where nobody else holds the stream's gradient.
    launch(blocks, 1, 1, [&] {
        rms_norm_backward(dy.data(), h.data(), weight, rstd.data(),
                          residual ? stream.data() : nullptr, stream.data(), partial.data(), rows,
                          block_rows);
    });
    launch(pieces(CHANNELS, SUM_CHANNELS), 1, 1,
           [&] { rms_norm_add_rows(partial.data(), dweight.data(), blocks); });
    write(h);
    write(y);
    write(rstd);
    write(stream);
    write(dweight);
    return 0;
}
