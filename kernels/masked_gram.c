/* masked_gram.c: the Gram matrix of each data point's candidates over the entries that were observed.
 *
 *   couplings[n, ij] = sum_d observed[n, d] fields[c_i, d] fields[c_j, d]     for the candidates i < j, row after row
 *
 * `observed` is 0 or 1; `fields` (H, D) has a field, a column of W, in each row.
 * Groups: ceil(N / TILE). Sizes: D, HPRIME.
 */
#define PAIRS (HPRIME * (HPRIME - 1) / 2)

#if WIDTH > 1
/* The elements of a vector are WIDTH consecutive d. */
#define REST (D % WIDTH)

KERNEL void masked_gram(int N, GLOBAL const real *RESTRICT observed, GLOBAL const real *RESTRICT fields,
                        GLOBAL const int *RESTRICT candidates, GLOBAL real *RESTRICT couplings)
{
    for (int n = GROUP_ID * TILE; n < N && n < (GROUP_ID + 1) * TILE; n++) {
        GLOBAL const real *mask = observed + (size_t)n * D;
        GLOBAL real *out = couplings + (size_t)n * PAIRS;
        GLOBAL const real *field[HPRIME];
        for (int i = 0; i < HPRIME; i++)
            field[i] = fields + (size_t)candidates[(size_t)n * HPRIME + i] * D;

        for (int i = 0; i < HPRIME - 1; i++) {
            vec sums[HPRIME];
            const vec end = vload_part(REST, 0, mask + D - REST) * vload_part(REST, 0, field[i] + D - REST);
            for (int j = i + 1; j < HPRIME; j++)
                sums[j] = end * vload_part(REST, 0, field[j] + D - REST);
            for (int d = 0; d + WIDTH <= D; d += WIDTH) {
                const vec seen = VLOAD(mask + d) * VLOAD(field[i] + d);
                for (int j = i + 1; j < HPRIME; j++)
                    sums[j] += seen * VLOAD(field[j] + d);
            }
            for (int j = i + 1; j < HPRIME; j++)
                *out++ = (real)total(VACC(sums[j]));
        }
    }
}

#else
/* What was observed of the fields comes to local memory, PIECE entries at a time; a lane takes every LANES-th pair. */
#define PIECE 32
#define SHARE ((PAIRS + LANES - 1) / LANES) /* pairs of a lane */

KERNEL void masked_gram(int N, GLOBAL const real *RESTRICT observed, GLOBAL const real *RESTRICT fields,
                        GLOBAL const int *RESTRICT candidates, GLOBAL real *RESTRICT couplings)
{
    LOCAL real tile_seen[TILE][HPRIME][PIECE + 1]; /* + 1: the lanes' rows lie in different banks */
    const size_t n = (size_t)GROUP_ID * TILE + ROW;
    const int alive = n < (size_t)N;

    int one[SHARE + 1], other[SHARE + 1]; /* + 1: an array cannot be empty */
    real sums[SHARE + 1];
    for (int k = 0; k < SHARE; k++) {
        int i = 0, p = LANE + k * LANES < PAIRS ? LANE + k * LANES : 0;
        for (; p >= HPRIME - 1 - i; i++)
            p -= HPRIME - 1 - i;
        one[k] = i;
        other[k] = i + 1 + p;
        sums[k] = 0;
    }
    for (int start = 0; start < D; start += PIECE) {
        const int count = D - start < PIECE ? D - start : PIECE;
        for (int x = LANE; x < HPRIME * PIECE; x += LANES) {
            const int i = x / PIECE, d = start + x % PIECE;
            tile_seen[ROW][i][x % PIECE] =
                alive && d < D ? observed[n * D + d] * fields[(size_t)candidates[n * HPRIME + i] * D + d] : 0;
        }
        BARRIER();
        for (int k = 0; k < SHARE; k++)
            for (int d = 0; d < count; d++)
                sums[k] += tile_seen[ROW][one[k]][d] * tile_seen[ROW][other[k]][d];
        BARRIER();
    }
    for (int k = 0; k < SHARE; k++)
        if (alive && LANE + k * LANES < PAIRS)
            couplings[n * PAIRS + LANE + k * LANES] = sums[k];
}
#endif
