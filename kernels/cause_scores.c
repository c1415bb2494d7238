/* cause_scores.c: how far each field by itself exceeds the data, the score of maximal causes.
 *
 *   scores[n, h] = -sum_d max(W[d, h], Y[n, d])       over the d with observed[n, d] = 1, if MISSING
 *
 * It is -sum_d max(W - Y, 0), less sum_d Y: the order of the latents is the same, for one operation less.
 * Sizes: D, H, MISSING.
 */

#if WIDTH > 1
/* ------------------------------------------- CPU devices: a vector holds WIDTH latents; a block of ROWS data points
 * and VECTORS of these stays in registers while d runs. Groups: ceil(N / TILE); TILE is WIDTH. */

#define ROWS (TILE < 4 ? TILE : 4)
#define VECTORS (H >= 4 * WIDTH ? 4 : 1)
#define BLOCK (VECTORS * WIDTH)

KERNEL void cause_scores(int N, GLOBAL const real *RESTRICT Y, GLOBAL const real *RESTRICT observed,
                         GLOBAL const real *RESTRICT W, GLOBAL real *RESTRICT scores)
{
    for (int first = 0; first < H; first += BLOCK) {
        const int h = H >= BLOCK && first > H - BLOCK ? H - BLOCK : first; /* the last block overlaps */
        for (int n = GROUP_ID * TILE; n < N && n < (GROUP_ID + 1) * TILE; n += ROWS) {
            GLOBAL const real *y[ROWS], *mask[ROWS]; /* beyond the end: the last data point again */
            vec sum[ROWS][VECTORS];
            for (int r = 0; r < ROWS; r++) {
                const size_t row = n + r < N ? n + r : N - 1;
                y[r] = Y + row * D;
                mask[r] = observed + (MISSING ? row * D : 0);
                for (int v = 0; v < VECTORS; v++)
                    sum[r][v] = (vec)(0);
            }
            for (int d = 0; d < D; d++) {
                vec w[VECTORS];
                for (int v = 0; v < VECTORS; v++) {
                    GLOBAL const real *field = W + (size_t)d * H + h + v * WIDTH;
                    w[v] = H < WIDTH ? vload_part(H, 0, field) : VLOAD(field);
                }
                for (int r = 0; r < ROWS; r++)
                    for (int v = 0; v < VECTORS; v++) {
                        const vec x = (vec)(y[r][d]), larger = VMAX(w[v], x);
                        sum[r][v] += MISSING ? larger * mask[r][d] : larger;
                    }
            }
            for (int r = 0; r < ROWS && n + r < N; r++)
                for (int v = 0; v < VECTORS; v++) {
                    GLOBAL real *out = scores + (size_t)(n + r) * H + h + v * WIDTH;
                    if (H < WIDTH)
                        vstore_part(-sum[r][v], H, out);
                    else
                        VSTORE(-sum[r][v], out);
                }
        }
    }
}

#else
/* --------------------------------- GPUs: a work-item takes a latent for all data points of a tile in local memory
 * Group g takes the tiles g, g + GROUPS, ... */

KERNEL void cause_scores(int N, GLOBAL const real *RESTRICT Y, GLOBAL const real *RESTRICT observed,
                         GLOBAL const real *RESTRICT W, GLOBAL real *RESTRICT scores)
{
    LOCAL real y[TILE * D], mask[MISSING ? TILE * D : 1];
    for (size_t start = (size_t)GROUP_ID * TILE; start < (size_t)N; start += (size_t)GROUPS * TILE) {
        const int count = N - start < TILE ? N - start : TILE;
        for (int i = LOCAL_ID; i < TILE * D; i += GROUP) { /* data points run fastest: neighbours are read together */
            const size_t from = (start + (i % TILE < count ? i % TILE : 0)) * D + i / TILE;
            y[i] = Y[from];
            if (MISSING)
                mask[i] = observed[from];
        }
        BARRIER();
        for (int h = LOCAL_ID; h < H; h += GROUP) {
            real sum[TILE];
            for (int r = 0; r < TILE; r++)
                sum[r] = 0;
            for (int d = 0; d < D; d++) {
                const real w = W[(size_t)d * H + h];
                for (int r = 0; r < TILE; r++) {
                    const real larger = w > y[d * TILE + r] ? w : y[d * TILE + r];
                    sum[r] += MISSING ? larger * mask[d * TILE + r] : larger;
                }
            }
            for (int r = 0; r < TILE; r++)
                if (r < count)
                    scores[(start + r) * H + h] = -sum[r];
        }
        BARRIER();
    }
}
#endif
