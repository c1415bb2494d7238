/* column_sums.c: sums[g, h] = sum over the rows n of group g of weights[n] X[n, h], in `acc`.
 *
 * Group g takes its SLAB of the rows. Sizes: H.
 */
KERNEL void column_sums(int N, GLOBAL const real *RESTRICT X, GLOBAL const real *RESTRICT weights,
                        GLOBAL acc *RESTRICT sums)
{
    const int first = SLAB(N, GROUP_ID), last = SLAB(N, GROUP_ID + 1);
    GLOBAL acc *mine = sums + (size_t)GROUP_ID * H;
#if WIDTH > 1
    for (int h = 0; h < H; h++)
        mine[h] = 0;
    for (int start = first; start < last; start += TILE) { /* in `real` within a tile */
        const int stop = last - start < TILE ? last : start + TILE;
        for (int h = 0; h + WIDTH <= H; h += WIDTH) {
            vec sum = (vec)(0);
            for (int n = start; n < stop; n++)
                sum += weights[n] * VLOAD(X + (size_t)n * H + h);
            VSTORE_ACC(VLOAD_ACC(mine + h) + VACC(sum), mine + h);
        }
        for (int h = H - H % WIDTH; h < H; h++)
            for (int n = start; n < stop; n++)
                mine[h] += weights[n] * X[(size_t)n * H + h];
    }
#else
    for (int h = LOCAL_ID; h < H; h += GROUP) {
        acc sum = 0;
        for (int n = first; n < last; n++)
            sum += weights[n] * X[(size_t)n * H + h];
        mine[h] = sum;
    }
#endif
}
