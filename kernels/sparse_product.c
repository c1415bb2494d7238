/* sparse_product.c: sums[g] = B' A over the rows n of group g, for a B that is mostly 0.
 *
 *   A (N, D), B (N, H), sums (GROUPS, H, D)
 *
 * Every B[n, h] that is not 0 adds a multiple of a row of A to a row of the sums; the others cost a look. Group g takes
 * its SLAB of the rows. For CPU devices, where that is faster than a dense product if few in a hundred are left; a GPU's
 * dense product is hard to beat. Sizes: D, H.
 */
#if WIDTH > 1
#define CHUNKS ((H + WIDTH - 1) / WIDTH)

/* x += factor y, rows of D numbers. */
DEVICE void add_row(real factor, GLOBAL const real *RESTRICT y, GLOBAL real *RESTRICT x)
{
    for (int d = 0; d + WIDTH <= D; d += WIDTH)
        VSTORE(VLOAD(x + d) + factor * VLOAD(y + d), x + d);
    for (int d = D - D % WIDTH; d < D; d++)
        x[d] += factor * y[d];
}
#endif

KERNEL void sparse_product(int N, GLOBAL const real *RESTRICT A, GLOBAL const real *RESTRICT B,
                           GLOBAL real *RESTRICT sums)
{
    const int first = SLAB(N, GROUP_ID), last = SLAB(N, GROUP_ID + 1);
    GLOBAL real *mine = sums + (size_t)GROUP_ID * H * D;
#if WIDTH > 1
    for (int i = 0; i < H * D; i++)
        mine[i] = 0;
    for (int n = first; n < last; n++) {
        GLOBAL const real *a = A + (size_t)n * D, *b = B + (size_t)n * H;
        for (int c = 0; c < CHUNKS; c++) {
            const int h = c * WIDTH;
            lanes x;
            x.v = vload_row(H - h, 0, b + h, (size_t)(N - 1 - n) * H);
            for (int some = BITS(x.v != (vec)(0)); some; some &= some - 1)
                add_row(x.at[LOWEST_BIT(some)], a, mine + (size_t)(h + LOWEST_BIT(some)) * D);
        }
    }
#else
    for (int d = LOCAL_ID; d < D; d += GROUP) {
        for (int h = 0; h < H; h++)
            mine[(size_t)h * D + d] = 0;
        for (int n = first; n < last; n++)
            for (int h = 0; h < H; h++) {
                const real factor = B[(size_t)n * H + h];
                if (factor != 0)
                    mine[(size_t)h * D + d] += factor * A[(size_t)n * D + d];
            }
    }
#endif
}
