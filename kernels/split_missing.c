/* split_missing.c: data with NaN for what is missing, taken apart: the data with 0 there, and what was observed.
 *
 *   filled[n, d]    Y[n, d], or 0 where that is NaN
 *   observed[n, d]  1, or 0 where Y[n, d] is NaN
 *
 * Groups: ceil(N / TILE). Sizes: D.
 */
KERNEL void split_missing(int N, GLOBAL const real *RESTRICT Y, GLOBAL real *RESTRICT filled,
                          GLOBAL real *RESTRICT observed)
{
    for (int row = 0; row < TILE && GROUP_ID * TILE + row < N; row++) {
        const size_t first = (size_t)(GROUP_ID * TILE + row) * D;
        for (int d = LOCAL_ID; d < D; d += GROUP) {
            const real y = Y[first + d];
            filled[first + d] = y == y ? y : 0;
            observed[first + d] = y == y ? 1 : 0;
        }
    }
}
