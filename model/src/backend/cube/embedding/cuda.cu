// The chains of equal ids that the embedding's backward pass walks.

// next[n] = the first position after n with the id of n, or the count of positions; follows[m]
// becomes 1 for every m that some next names. follows starts as zeros. A block looks through the
// ids behind its positions by tiles of TILE, a multiple of THREADS.
KERNEL void __launch_bounds__(THREADS)
chain(const int* ids, int* next, int* follows, int count) {
    int* tile = reinterpret_cast<int*>(shared_memory());
    int n = block_x() * THREADS + thread_index();
    int id = n < count ? ids[n] : -1;
    int found = count;
    for (int start = block_x() * THREADS; start < count; start += TILE) {
        sync_block();
#pragma unroll
        for (int j = 0; j < TILE; j += THREADS) {
            int m = start + j + thread_index();
            tile[j + thread_index()] = m < count ? ids[m] : -2;
        }
        sync_block();
        if (found < count || n >= count) continue;
        for (int j = 0; j < TILE && found == count; j += 8) {
            bool any = false;
#pragma unroll
            for (int k = 0; k < 8; k++) any = any || (tile[j + k] == id && start + j + k > n);
            if (!any) continue;
#pragma unroll
            for (int k = 7; k >= 0; k--)
                if (tile[j + k] == id && start + j + k > n) found = start + j + k;
        }
    }
    if (n < count) {
        next[n] = found;
        if (found < count) follows[found] = 1;
    }
}
