/* point_sums.c: sums[g] = sum over the data points n of group g of weights[n] * (fa a[n] + fb b[n] + fc c[n]), in `acc`.
 *
 * Group g takes its SLAB of the points. Each point's terms are added first: they may be large and cancel. `ra`, `rb`, `rc`
 * are what the factors lost to rounding. Sizes: PARTS (of a, b, c), WEIGHTED (0: the weights are 1).
 */
#define ADDED(f, r, x) ((acc)(f) * (x) + (acc)(r) * (x))

DEVICE acc point(int n, GLOBAL const real *a, GLOBAL const real *b, GLOBAL const real *c, real fa, real ra, real fb,
                 real rb, real fc, real rc, GLOBAL const real *weights)
{
    acc sum = ADDED(fa, ra, a[n]);
    if (PARTS > 1)
        sum += ADDED(fb, rb, b[n]);
    if (PARTS > 2)
        sum += ADDED(fc, rc, c[n]);
    return WEIGHTED ? sum * weights[n] : sum;
}

KERNEL void point_sums(int N, GLOBAL const real *RESTRICT a, GLOBAL const real *RESTRICT b,
                       GLOBAL const real *RESTRICT c, real fa, real ra, real fb, real rb, real fc, real rc,
                       GLOBAL const real *RESTRICT weights, GLOBAL acc *RESTRICT sums)
{
    const int first = SLAB(N, GROUP_ID), last = SLAB(N, GROUP_ID + 1);
#if WIDTH > 1
    acc whole = 0;
    for (int start = first; start < last; start += TILE) { /* a tile by itself: fewer terms in a row */
        acc sum = 0;
        for (int n = start; n < last && n < start + TILE; n++)
            sum += point(n, a, b, c, fa, ra, fb, rb, fc, rc, weights);
        whole += sum;
    }
    sums[GROUP_ID] = whole;
#else
    LOCAL acc scratch[GROUP];
    acc sum = 0;
    for (int n = first + LOCAL_ID; n < last; n += GROUP)
        sum += point(n, a, b, c, fa, ra, fb, rb, fc, rc, weights);
    sum = group_sum(sum, scratch);
    if (LOCAL_ID == 0)
        sums[GROUP_ID] = sum;
#endif
}
