/* column_sums.c: sums[g, h] = sum over the rows n of group g of weights[n] X[n, h], in `acc`.
 *
 * Group g takes its SLAB of the rows. Sizes: H.
 */
#if H > GROUP / 2
#define COLUMNS GROUP
#elif H > 16
#define COLUMNS (GROUP < 32 ? GROUP : 32)
#elif H > 4
#define COLUMNS (GROUP < 16 ? GROUP : 16)
#elif H > 1
#define COLUMNS (GROUP < 4 ? GROUP : 4)
#else
#define COLUMNS 1
#endif

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
    /* Neighbouring work-items take neighbouring columns; where there are few, several share the rows of one. */
    LOCAL acc scratch[GROUP];
    const int column = (int)((unsigned int)LOCAL_ID % COLUMNS), share = (int)((unsigned int)LOCAL_ID / COLUMNS);
    for (int start = 0; start < H; start += COLUMNS) {
        const int h = start + column;
        acc sum = 0;
        if (h < H)
            for (int n = first + share; n < last; n += GROUP / COLUMNS)
                sum += weights[n] * X[(size_t)n * H + h];
        scratch[LOCAL_ID] = sum;
        BARRIER();
        for (int other = 1; share == 0 && other < GROUP / COLUMNS; other++)
            sum += scratch[other * COLUMNS + column];
        if (share == 0 && h < H)
            mine[h] = sum;
        BARRIER();
    }
#endif
}
