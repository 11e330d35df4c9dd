// mma.cu or, with HOPPER, wgmma.cu on an emulated block.
//
// stdin: batch, queries, keys, heads, kv_heads (int32), then q, k, v, dout (bf16), first_visible
// (int32). stdout: o (bf16), lse (f32) and, for as many queries as keys, delta (f32), dq, dk, dv.

#include "emulated.h"

#include "elements.cu"
#include "rows.cu"
#if HOPPER
#include "emulated_hopper.h"

#include "wgmma.cu"
#else
#include "mma.cu"
#endif

int main() {
    std::vector<int> shape = read<int>(5);
    int batch = shape[0], queries = shape[1], keys = shape[2], heads = shape[3];
    int kv_heads = shape[4];
    size_t q_size = size_t(batch) * queries * heads * D, kv_size = size_t(batch) * keys * kv_heads * D;
    size_t rows = size_t(batch) * heads * queries;
    std::vector<bf16> q = read<bf16>(q_size), k = read<bf16>(kv_size), v = read<bf16>(kv_size);
    std::vector<bf16> dout = read<bf16>(q_size), o(q_size), dq(q_size), dk(kv_size), dv(kv_size);
    std::vector<int> first_visible = read<int>(size_t(batch) * queries);
    std::vector<float> lse(rows), delta(rows);
    float scale = 1.0f / sqrtf(D);
    launch(pieces(queries, QUERY_ROWS), heads, batch, [&] {
        attention_forward(q.data(), k.data(), v.data(), first_visible.data(), o.data(), lse.data(),
                          queries, keys, heads, kv_heads, scale);
    });
    write(o);
    write(lse);
    if (queries != keys) return 0;
    launch(pieces(rows * CHUNKS, THREADS), 1, 1, [&] {
        attention_row_products(dout.data(), o.data(), delta.data(), rows, queries, heads);
    });
    launch(pieces(queries, QUERY_ROWS), heads, batch, [&] {
        attention_query_gradient(dout.data(), q.data(), k.data(), v.data(), lse.data(),
                                 delta.data(), first_visible.data(), dq.data(), queries, heads,
                                 kv_heads, scale);
    });
    launch(pieces(keys, KEY_ROWS), kv_heads, batch, [&] {
        attention_key_value_gradient(dout.data(), q.data(), k.data(), v.data(), lse.data(),
                                     delta.data(), first_visible.data(), dk.data(), dv.data(),
                                     queries, heads, kv_heads, scale);
    });
    write(delta);
    write(dq);
    write(dk);
    write(dv);
    return 0;
}
