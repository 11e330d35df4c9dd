// cuda.cu on an emulated block.
//
// stdin: the number of ids, the ids (int32). stdout: next, follows (int32).

#include "emulated.h"

#include "elements.cu"
#include "cuda.cu"

int main() {
    int count = read<int>(1)[0];
    std::vector<int> ids = read<int>(count), next(count), follows(count);
    launch(pieces(count, THREADS), 1, 1,
           [&] { chain(ids.data(), next.data(), follows.data(), count); });
    write(next);
    write(follows);
    return 0;
}
