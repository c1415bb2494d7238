/* cause_scores.c: how far each field by itself exceeds the data, the score of maximal causes.
 *
 *   scores[n, h] = -sum_d max(W[d, h], Y[n, d])       over the d with observed[n, d] = 1, if MISSING
 *
 * It is -sum_d max(W - Y, 0), less sum_d Y: the order of the latents is the same, for one operation less.
 * WIDTH latents are lanes; a block of ROWS data points and VECTORS of these stays in registers while d runs.
 * Warp g takes the points g WIDTH ... g WIDTH + WIDTH - 1. Sizes: D, H, MISSING.
 */
#define MOST (WIDTH < 32 ? 4 : 2)
#define VECTORS (H >= MOST * WIDTH ? MOST : 1)
#define ROWS (MISSING ? 4 : 16 / MOST)
#define BLOCK (VECTORS * WIDTH)

KERNEL void cause_scores(int N, GLOBAL const real *RESTRICT Y, GLOBAL const real *RESTRICT observed,
                         GLOBAL const real *RESTRICT W, GLOBAL real *RESTRICT scores)
{
    for (int first = 0; first < H; first += BLOCK) {
        const int h = H >= BLOCK && first > H - BLOCK ? H - BLOCK : first; /* the last block overlaps */
        for (int n = WARP * WIDTH; n < N && n < (WARP + 1) * WIDTH; n += ROWS) {
            GLOBAL const real *y = Y + (size_t)n * D, *mask = observed + (MISSING ? (size_t)n * D : 0);
            int row[ROWS]; /* beyond the end: the last data point again */
            vec sum[ROWS][VECTORS];
            for (int r = 0; r < ROWS; r++) {
                row[r] = (n + r < N ? r : N - 1 - n) * D;
                for (int v = 0; v < VECTORS; v++)
                    sum[r][v] = (vec)(0);
            }
            ROLLED for (int d = 0; d < D; d++) {
                vec w[VECTORS];
                for (int v = 0; v < VECTORS; v++) {
                    GLOBAL const real *field = W + (size_t)d * H + h + v * WIDTH;
                    w[v] = VECTORS > 1 ? VLOAD(field) : vload_row(H - h, 0, field, (size_t)(D - 1 - d) * H);
                }
                for (int r = 0; r < ROWS; r++)
                    for (int v = 0; v < VECTORS; v++) {
                        const vec x = (vec)(y[row[r] + d]), larger = VMAX(w[v], x);
                        sum[r][v] += MISSING ? larger * mask[row[r] + d] : larger;
                    }
            }
            for (int r = 0; r < ROWS && n + r < N; r++)
                for (int v = 0; v < VECTORS; v++) {
                    GLOBAL real *out = scores + (size_t)(n + r) * H + h + v * WIDTH;
                    vstore_row(-sum[r][v], H - h - v * WIDTH, out, 0);
                }
        }
    }
}
