// libcublas.so.13 for a machine without a GPU: the calls behind CuPy's matmul, dot and einsum of real matrices, as
// plain loops over column-major arrays. Every other call that CuPy names becomes a stub that returns
// CUBLAS_STATUS_NOT_SUPPORTED (build.py).
#include <cstddef>

#define API extern "C" __attribute__((visibility("default")))

namespace {
enum Status { SUCCESS = 0, NOT_SUPPORTED = 15 };  // the values of cublasStatus_t
enum Type { FLOAT32 = 0, FLOAT64 = 1 };           // the values of cudaDataType_t

struct Handle {
    void* stream = nullptr;
    int pointer_mode = 0;
    int math_mode = 0;
};

// beta == 0 overwrites: what was there may be NaN.
template <class T>
void assign(T& target, T alpha, T value, T beta) {
    target = alpha * value + (beta == 0 ? T(0) : beta * target);
}

// C = alpha op(A) op(B) + beta C, with op(A) of shape (m, k).
template <class T>
void gemm(int transposed_a, int transposed_b, int m, int n, int k, T alpha, const T* a, int lda, const T* b, int ldb,
          T beta, T* c, int ldc) {
    const size_t a_row = transposed_a ? lda : 1, a_column = transposed_a ? 1 : lda;
    const size_t b_row = transposed_b ? ldb : 1, b_column = transposed_b ? 1 : ldb;
    for (int j = 0; j < n; j++)
        for (int i = 0; i < m; i++) {
            T sum = 0;
            for (int p = 0; p < k; p++) sum += a[i * a_row + p * a_column] * b[p * b_row + j * b_column];
            assign(c[i + static_cast<size_t>(j) * ldc], alpha, sum, beta);
        }
}

template <class T>
void gemv(int transposed, int m, int n, T alpha, const T* a, int lda, const T* x, int step_x, T beta, T* y,
          int step_y) {
    const size_t row = transposed ? lda : 1, column = transposed ? 1 : lda;
    const int rows = transposed ? n : m, columns = transposed ? m : n;
    for (int i = 0; i < rows; i++) {
        T sum = 0;
        for (int j = 0; j < columns; j++) sum += a[i * row + j * column] * x[j * static_cast<ptrdiff_t>(step_x)];
        assign(y[i * static_cast<ptrdiff_t>(step_y)], alpha, sum, beta);
    }
}
}  // namespace

API int cublasCreate_v2(Handle** handle) {
    *handle = new Handle;
    return SUCCESS;
}
API int cublasDestroy_v2(Handle* handle) {
    delete handle;
    return SUCCESS;
}
API int cublasSetStream_v2(Handle* handle, void* stream) {
    handle->stream = stream;
    return SUCCESS;
}
API int cublasGetStream_v2(Handle* handle, void** stream) {
    *stream = handle->stream;
    return SUCCESS;
}
API int cublasSetPointerMode_v2(Handle* handle, int mode) {
    handle->pointer_mode = mode;
    return SUCCESS;
}
API int cublasGetPointerMode_v2(Handle* handle, int* mode) {
    *mode = handle->pointer_mode;
    return SUCCESS;
}
API int cublasSetMathMode(Handle* handle, int mode) {
    handle->math_mode = mode;
    return SUCCESS;
}
API int cublasGetMathMode(Handle* handle, int* mode) {
    *mode = handle->math_mode;
    return SUCCESS;
}
API int cublasSetWorkspace_v2(Handle*, void*, size_t) { return SUCCESS; }
API int cublasGetVersion_v2(Handle*, int* version) {
    *version = 130000;
    return SUCCESS;
}

// The real routines, once for each precision: LETTER is BLAS' own.
#define CUBLAS_ROUTINES(LETTER, T)                                                                                     \
    API int cublas##LETTER##gemm_v2(Handle*, int ta, int tb, int m, int n, int k, const T* alpha, const T* a, int lda, \
                                    const T* b, int ldb, const T* beta, T* c, int ldc) {                               \
        gemm(ta, tb, m, n, k, *alpha, a, lda, b, ldb, *beta, c, ldc);                                                  \
        return SUCCESS;                                                                                                \
    }                                                                                                                  \
    API int cublas##LETTER##gemmBatched(Handle*, int ta, int tb, int m, int n, int k, const T* alpha,                  \
                                        const T* const* a, int lda, const T* const* b, int ldb, const T* beta,         \
                                        T* const* c, int ldc, int count) {                                             \
        for (int i = 0; i < count; i++) gemm(ta, tb, m, n, k, *alpha, a[i], lda, b[i], ldb, *beta, c[i], ldc);         \
        return SUCCESS;                                                                                                \
    }                                                                                                                  \
    API int cublas##LETTER##gemmStridedBatched(Handle*, int ta, int tb, int m, int n, int k, const T* alpha,           \
                                               const T* a, int lda, long long step_a, const T* b, int ldb,             \
                                               long long step_b, const T* beta, T* c, int ldc, long long step_c,       \
                                               int count) {                                                            \
        for (int i = 0; i < count; i++)                                                                                \
            gemm(ta, tb, m, n, k, *alpha, a + i * step_a, lda, b + i * step_b, ldb, *beta, c + i * step_c, ldc);       \
        return SUCCESS;                                                                                                \
    }                                                                                                                  \
    API int cublas##LETTER##gemv_v2(Handle*, int transposed, int m, int n, const T* alpha, const T* a, int lda,        \
                                    const T* x, int step_x, const T* beta, T* y, int step_y) {                         \
        gemv(transposed, m, n, *alpha, a, lda, x, step_x, *beta, y, step_y);                                           \
        return SUCCESS;                                                                                                \
    }                                                                                                                  \
    API int cublas##LETTER##dot_v2(Handle*, int n, const T* x, int step_x, const T* y, int step_y, T* result) {        \
        *result = 0;                                                                                                   \
        for (ptrdiff_t i = 0; i < n; i++) *result += x[i * step_x] * y[i * step_y];                                    \
        return SUCCESS;                                                                                                \
    }                                                                                                                  \
    API int cublas##LETTER##ger_v2(Handle*, int m, int n, const T* alpha, const T* x, int step_x, const T* y,          \
                                   int step_y, T* a, int lda) {                                                        \
        for (ptrdiff_t j = 0; j < n; j++)                                                                              \
            for (ptrdiff_t i = 0; i < m; i++) a[i + j * lda] += *alpha * x[i * step_x] * y[j * step_y];                \
        return SUCCESS;                                                                                                \
    }                                                                                                                  \
    API int cublas##LETTER##scal_v2(Handle*, int n, const T* alpha, T* x, int step_x) {                                \
        for (ptrdiff_t i = 0; i < n; i++) x[i * step_x] *= *alpha;                                                     \
        return SUCCESS;                                                                                                \
    }
CUBLAS_ROUTINES(S, float)
CUBLAS_ROUTINES(D, double)
#undef CUBLAS_ROUTINES

// The same with the type at run time; CuPy uses them for products of one type.
API int cublasGemmEx(Handle*, int ta, int tb, int m, int n, int k, const void* alpha, const void* a, Type type_a,
                     int lda, const void* b, Type type_b, int ldb, const void* beta, void* c, Type type_c, int ldc, int,
                     int) {
    if (type_a != type_b || type_a != type_c) return NOT_SUPPORTED;
    auto product = [&](auto zero) {
        using T = decltype(zero);
        gemm(ta, tb, m, n, k, *(const T*)alpha, (const T*)a, lda, (const T*)b, ldb, *(const T*)beta, (T*)c, ldc);
        return SUCCESS;
    };
    return type_a == FLOAT32 ? product(0.0f) : type_a == FLOAT64 ? product(0.0) : NOT_SUPPORTED;
}

API int cublasSgemmEx(Handle* handle, int ta, int tb, int m, int n, int k, const float* alpha, const void* a,
                      Type type_a, int lda, const void* b, Type type_b, int ldb, const float* beta, void* c,
                      Type type_c, int ldc) {
    if (type_a != FLOAT32) return NOT_SUPPORTED;
    return cublasGemmEx(handle, ta, tb, m, n, k, alpha, a, type_a, lda, b, type_b, ldb, beta, c, type_c, ldc, 0, 0);
}

API int cublasGemmStridedBatchedEx(Handle* handle, int ta, int tb, int m, int n, int k, const void* alpha,
                                   const void* a, Type type_a, int lda, long long step_a, const void* b, Type type_b,
                                   int ldb, long long step_b, const void* beta, void* c, Type type_c, int ldc,
                                   long long step_c, int count, int, int) {
    if (type_a != type_b || type_a != type_c || (type_a != FLOAT32 && type_a != FLOAT64)) return NOT_SUPPORTED;
    const long long bytes = type_a == FLOAT32 ? sizeof(float) : sizeof(double);
    for (int i = 0; i < count; i++)
        cublasGemmEx(handle, ta, tb, m, n, k, alpha, (const char*)a + i * step_a * bytes, type_a, lda,
                     (const char*)b + i * step_b * bytes, type_b, ldb, beta, (char*)c + i * step_c * bytes, type_c, ldc,
                     0, 0);
    return SUCCESS;
}
