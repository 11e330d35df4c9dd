// cuBLASLt without a GPU, for tests: products are work on their stream and compute nothing. It offers
// three algorithms for every product.

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { INVALID_VALUE = 7, OFFERED = 3 };

typedef int Result;

void stand_in_work(void* stream, const char* what); // of cuda.c

static int object;

// cublasLtMatmulHeuristicResult_t.
typedef struct {
    uint64_t algorithm[8];
    size_t workspace;
    Result state;
    float waves;
    int reserved[4];
} Offer;

Result cublasLtCreate(void** out) { return *out = &object, 0; }
Result cublasLtMatmulDescCreate(void** out, int compute, int scale) { return *out = &object, 0; }
Result cublasLtMatmulDescSetAttribute(void* of, int name, const void* value, size_t bytes) {
    return 0;
}
Result cublasLtMatrixLayoutCreate(void** out, int type, uint64_t rows, uint64_t columns,
                                  int64_t leading) {
    return *out = &object, rows && columns && leading >= (int64_t)rows ? 0 : INVALID_VALUE;
}
Result cublasLtMatmulPreferenceCreate(void** out) { return *out = &object, 0; }
Result cublasLtMatmulPreferenceSetAttribute(void* of, int name, const void* value, size_t bytes) {
    return 0;
}
Result cublasLtMatmulAlgoGetHeuristic(void* handle, void* product, void* a, void* b, void* c,
                                      void* d, void* preference, int asked, Offer* offers,
                                      int* count) {
    *count = asked < OFFERED ? asked : OFFERED;
    memset(offers, 0, *count * sizeof *offers);
    return 0;
}
Result cublasLtMatmul(void* handle, void* product, const void* alpha, const void* a, void* a_layout,
                      const void* b, void* b_layout, const void* beta, const void* c,
                      void* c_layout, void* d, void* d_layout, const Offer* algorithm,
                      void* workspace, size_t workspace_bytes, void* stream) {
    if (!alpha || !a || !b || !beta || !c || !d || !algorithm) return INVALID_VALUE;
    return stand_in_work(stream, "a product"), 0;
}
