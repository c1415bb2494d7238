/* scale_rows.c: X[n, :] *= weights[n], in place; a weight of 0 takes a data point out of every sum that follows.
 *
 * Groups: ceil(N / TILE). Sizes: H.
 */
KERNEL void scale_rows(int N, GLOBAL real *RESTRICT X, GLOBAL const real *RESTRICT weights)
{
    for (int row = 0; row < TILE && GROUP_ID * TILE + row < N; row++) {
        const int n = GROUP_ID * TILE + row;
        const real weight = weights[n];
        for (int h = LOCAL_ID; h < H; h += GROUP)
            X[(size_t)n * H + h] *= weight;
    }
}
