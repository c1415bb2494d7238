/* linear_scores.c: scores for preselection where entries are missing, so that every data point has its own norms.
 *
 *   COSINE 0   score_h = max_v v (slope_h b_h - v norms_h / 2) + offset[v, h], the log joint of latent h by itself
 *   COSINE 1   score_h = b_h / sqrt(norms_h); 0 where nothing of the field was observed
 *
 * Groups: ceil(N / TILE). Sizes: H, VALUES, COSINE.
 */
KERNEL void linear_scores(int N, GLOBAL const real *RESTRICT b, GLOBAL const real *RESTRICT norms,
                          GLOBAL const real *RESTRICT slope, GLOBAL const real *RESTRICT offset,
                          GLOBAL const real *RESTRICT values, GLOBAL real *RESTRICT scores)
{
    for (int row = 0; row < TILE && GROUP_ID * TILE + row < N; row++) {
        const size_t first = (size_t)(GROUP_ID * TILE + row) * H;
        for (int h = LOCAL_ID; h < H; h += GROUP) {
            const real x = b[first + h], norm = norms[first + h];
#if COSINE
            scores[first + h] = norm > 0 ? x / sqrt(norm) : 0;
#else
            real best = -REAL_INF;
            for (int v = 0; v < VALUES; v++)
                best = REAL_MAX(values[v] * (slope[h] * x - values[v] / 2 * norm) + offset[v * H + h], best);
            scores[first + h] = best;
#endif
        }
    }
}
