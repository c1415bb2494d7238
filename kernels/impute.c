/* impute.c: what missing entries, latents themselves, owe to pairs of latents.
 *
 *   sums[g, c_i, d] = sum over the points n of warp g of w_n m_nd sum_{j != i} pairs[n, ij] fields[c_j, d]
 *
 * c_i are the candidates of n, `fields` (H, D) has a column of W in each row, and m_nd = 1 - observed[n, d] is 1 for what
 * is missing. `observed` (N, D) becomes w_n m_nd. Warp g takes its share of the points, one after the other, with a part
 * of D in its lanes. Sizes: D, H, HPRIME.
 */
#define PAIRS (HPRIME * (HPRIME - 1) / 2)
#define PAIR(i, j) ((i) * (2 * HPRIME - (i) - 1) / 2 + (j) - (i) - 1) /* the number of the pair i < j */

KERNEL void impute(int N, GLOBAL real *RESTRICT observed, GLOBAL const real *RESTRICT fields,
                   GLOBAL const int *RESTRICT candidates, GLOBAL const real *RESTRICT pairs,
                   GLOBAL const real *RESTRICT weights, GLOBAL acc *RESTRICT sums)
{
    const int first = (int)((int64)N * WARP / WARPS), last = (int)((int64)N * (WARP + 1) / WARPS);
    GLOBAL acc *mine = sums + (size_t)WARP * H * D;
    for (int d = 0; d < D; d += WIDTH) {
        const int left = D - d < WIDTH ? D - d : WIDTH;
        for (int h = 0; h < H; h++)
            EACH_LANE(r, left)
                mine[(size_t)h * D + d + r] = 0;
        for (int n = first; n < last; n++) {
            const size_t row = (size_t)n * D + d, after = (size_t)(last - 1 - n) * D;
            lanes missing;
            missing.v = weights[n] * (1 - vload_row(left, 1, observed + row, after));
            vstore_row(missing.v, left, observed + row, after);
            if (!WHERE(missing.v != 0))
                continue;
            GLOBAL const int *chosen = candidates + (size_t)n * HPRIME;
            vec field[HPRIME];
            for (int j = 0; j < HPRIME; j++)
                field[j] = vload_row(left, 0, fields + (size_t)chosen[j] * D + d, 0);
            for (int i = 0; i < HPRIME; i++) {
                lanes expected;
                expected.v = (vec)(0);
                for (int j = 0; j < HPRIME; j++)
                    if (j != i)
                        expected.v += pairs[(size_t)n * PAIRS + (i < j ? PAIR(i, j) : PAIR(j, i))] * field[j];
                expected.v *= missing.v;
                EACH_LANE(r, left)
                    mine[(size_t)chosen[i] * D + d + r] += MINE(expected, r);
            }
        }
    }
}
