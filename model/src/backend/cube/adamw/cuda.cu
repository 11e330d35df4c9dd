// AdamW, Σ x² and zeroing over many tensors in one launch. A table, passed by value, says where the
// tensors are: ADAMW_ENTRIES or SPAN_ENTRIES of them. Each block of threads takes BLOCK_ELEMENTS
// elements of one of them.
//
// Sums have an order that depends on the sizes alone: there are no atomics.

struct alignas(8) FourHalves {
    u32 x[2];
};

struct AdamWEntry {
    float* param;
    float* m;
    float* v;
    const float* grad;
    bf16* copy;       // or null
    long long count;
    float keep;       // 1 − lr · λ
    int first_block;
};

struct AdamWTable {
    AdamWEntry entries[ADAMW_ENTRIES];
    int count;
    float rate;             // lr / (1 − β₁ᵗ)
    float root_correction;  // 1 / √(1 − β₂ᵗ)
    float beta1;
    float beta2;
    float eps;
    float grad_scale;
    int padding;
};

struct Span {
    float* x;
    long long count;
    int first_block;
    int padding;
};

struct SpanTable {
    Span entries[SPAN_ENTRIES];
    int count;
    int blocks;
};

// The entry that block `block` works on: the last one that does not start behind it.
template <class Table> DEVICE int entry_of(const Table& table, int block) {
    int low = 0, high = table.count;
    while (high - low > 1) {
        int middle = (low + high) / 2;
        if (table.entries[middle].first_block <= block) low = middle;
        else high = middle;
    }
    return low;
}

// The elements of the block's entry that it takes: first and end.
template <class Entry>
DEVICE void run_of(const Entry& entry, long long& first, long long& end) {
    first = static_cast<long long>(block_x() - entry.first_block) * BLOCK_ELEMENTS;
    end = first + BLOCK_ELEMENTS < entry.count ? first + BLOCK_ELEMENTS : entry.count;
}

// One element: m, v and the parameter (Loshchilov and Hutter 2019, algorithm 2).
DEVICE void update(const AdamWTable& table, float keep, float& param, float& m, float& v,
                   float grad) {
    float g = grad * table.grad_scale;
    m = table.beta1 * m + (1.0f - table.beta1) * g;
    v = table.beta2 * v + (1.0f - table.beta2) * g * g;
    float root = square_root(v) * table.root_correction;
    param = param * keep - table.rate * m / (root + table.eps);
}

KERNEL void adamw(const __grid_constant__ AdamWTable table) {
    const AdamWEntry& entry = table.entries[entry_of(table, block_x())];
    long long first, end;
    run_of(entry, first, end);
    for (long long i = first + 4 * thread_index(); i < end; i += 4 * THREADS) {
        if (i + 4 <= end) {
            Four param = *reinterpret_cast<const Four*>(entry.param + i);
            Four m = *reinterpret_cast<const Four*>(entry.m + i);
            Four v = *reinterpret_cast<const Four*>(entry.v + i);
            Four grad = *reinterpret_cast<const Four*>(entry.grad + i);
#pragma unroll
            for (int j = 0; j < 4; j++)
                update(table, entry.keep, param.x[j], m.x[j], v.x[j], grad.x[j]);
            *reinterpret_cast<Four*>(entry.param + i) = param;
            *reinterpret_cast<Four*>(entry.m + i) = m;
            *reinterpret_cast<Four*>(entry.v + i) = v;
            if (entry.copy) {
                FourHalves halves = {{pack(param.x[0], param.x[1]), pack(param.x[2], param.x[3])}};
                *reinterpret_cast<FourHalves*>(entry.copy + i) = halves;
            }
            continue;
        }
        for (long long j = i; j < end; j++) {
            update(table, entry.keep, entry.param[j], entry.m[j], entry.v[j], entry.grad[j]);
            if (entry.copy) entry.copy[j] = static_cast<bf16>(pack(entry.param[j], 0.0f) & 0xffff);
        }
    }
}

KERNEL void zero(const __grid_constant__ SpanTable table) {
    const Span& span = table.entries[entry_of(table, block_x())];
    long long first, end;
    run_of(span, first, end);
    for (long long i = first + 4 * thread_index(); i < end; i += 4 * THREADS) {
        if (i + 4 <= end) {
            *reinterpret_cast<Four*>(span.x + i) = Four{{0.0f, 0.0f, 0.0f, 0.0f}};
            continue;
        }
        for (long long j = i; j < end; j++) span.x[j] = 0.0f;
    }
}

// A sum and what rounding took from it (Neumaier's compensated sum).
struct Sum {
    float total;
    float lost;
};

DEVICE void add(Sum& sum, float term) {
    float next = sum.total + term;
    bool larger = absolute(sum.total) >= absolute(term);
    float large = larger ? sum.total : term, small = larger ? term : sum.total;
    sum.lost += (large - next) + small;
    sum.total = next;
}

// The sum over the threads of the block, by halving, in thread 0.
DEVICE Sum block_sum(Sum mine) {
    Sum* shared = reinterpret_cast<Sum*>(shared_memory());
    int self = thread_index();
    shared[self] = mine;
    sync_block();
    for (int active = THREADS / 2; active > 0; active /= 2) {
        if (self < active) {
            add(shared[self], shared[self + active].total);
            shared[self].lost += shared[self + active].lost;
        }
        sync_block();
    }
    return shared[0];
}

// Σ x² of the run of each block: partial (blocks).
KERNEL void sum_of_squares(const __grid_constant__ SpanTable table, Sum* partial) {
    const Span& span = table.entries[entry_of(table, block_x())];
    long long first, end;
    run_of(span, first, end);
    Sum sum = {0.0f, 0.0f};
    for (long long i = first + 4 * thread_index(); i < end; i += 4 * THREADS) {
        if (i + 4 <= end) {
            Four x = *reinterpret_cast<const Four*>(span.x + i);
            add(sum, (x.x[0] * x.x[0] + x.x[1] * x.x[1]) + (x.x[2] * x.x[2] + x.x[3] * x.x[3]));
            continue;
        }
        for (long long j = i; j < end; j++) add(sum, span.x[j] * span.x[j]);
    }
    sum = block_sum(sum);
    if (thread_index() == 0) partial[block_x()] = sum;
}

// The sum of the partial sums of each tensor: totals (entries). One block a tensor.
KERNEL void sum_partials(const __grid_constant__ SpanTable table, const Sum* partial, Sum* totals) {
    int entry = block_x();
    int end = entry + 1 < table.count ? table.entries[entry + 1].first_block : table.blocks;
    Sum sum = {0.0f, 0.0f};
    for (int i = table.entries[entry].first_block + thread_index(); i < end; i += THREADS) {
        add(sum, partial[i].total);
        sum.lost += partial[i].lost;
    }
    sum = block_sum(sum);
    if (thread_index() == 0) totals[entry] = sum;
}
