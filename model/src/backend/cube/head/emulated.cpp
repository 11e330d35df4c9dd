// cuda.cu on an emulated block.
//
// stdin: rows, vocabulary (int32), scale (f32), targets (int32), logits (f32). stdout: losses (f32)
// without a gradient, losses with one, dlogits (bf16).

#include "emulated.h"

#include "elements.cu"
#include "cuda.cu"

int main() {
    std::vector<int> shape = read<int>(2);
    int rows = shape[0], vocabulary = shape[1];
    float scale = read<float>(1)[0];
    std::vector<int> targets = read<int>(rows);
    std::vector<float> logits = read<float>(size_t(rows) * vocabulary), losses(rows);
    std::vector<bf16> dlogits(logits.size());
    for (bf16* gradient : {static_cast<bf16*>(nullptr), dlogits.data()}) {
        launch(rows, 1, 1, [&] {
            cross_entropy(logits.data(), targets.data(), losses.data(), gradient, 0, vocabulary,
                          scale);
        });
        write(losses);
    }
    write(dlogits);
    return 0;
}
