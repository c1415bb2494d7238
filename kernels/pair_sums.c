/* pair_sums.c: sums[i, j] += scale * sum_n weights[n] <s_i s_j>_n over the candidates i < j of each data point.
 *
 * Whole numbers in units of 2^-40: their sum has no order, so every run gives the same bits. There is room for sums of
 * |scale * weights * pairs| below 2^23: the scale is a power of 2 that suits the size of the latents (pair_moments,
 * gem/models/linear.py). Only the upper triangle is touched.
 * Sizes: H, HPRIME.
 */
#define UNIT ((real)1099511627776.0) /* 2^40 */

DEVICE int64 fixed_point(real x)
{
    return (int64)(x * UNIT + (x < 0 ? (real)-0.5 : (real)0.5));
}

#if WIDTH > 1
#define PAIRS (HPRIME * (HPRIME - 1) / 2)
#define ROW_OF_PAIRS(i) ((i) * (2 * HPRIME - (i) - 1) / 2) /* the number of the first pair with candidate i */

/* Every work-group reads all data points and owns some rows of the sums, neighbours as the candidates are ascending:
 * nothing is shared, no atomics. Of low rows there are more pairs i < j, and a group has fewer. Pairs that are never
 * active together cost a look, a vector of them at a time. Groups: one for each compute unit. */
KERNEL void pair_sums(int N, GLOBAL const int *RESTRICT candidates, GLOBAL const real *RESTRICT pairs,
                      GLOBAL const real *RESTRICT weights, real scale, GLOBAL int64 *RESTRICT sums)
{
    const int first = (int)(H * (1 - sqrt(1 - (float)GROUP_ID / GROUPS)));
    const int last = GROUP_ID + 1 < GROUPS ? (int)(H * (1 - sqrt(1 - (float)(GROUP_ID + 1) / GROUPS))) : H;
    int of_i[PAIRS + 1], of_j[PAIRS + 1];
    for (int i = 0, p = 0; i < HPRIME; i++)
        for (int j = i + 1; j < HPRIME; j++, p++) {
            of_i[p] = i;
            of_j[p] = j;
        }

    for (int n = 0; n < N; n++) {
        GLOBAL const int *chosen = candidates + (size_t)n * HPRIME;
        GLOBAL const real *pair = pairs + (size_t)n * PAIRS;
        int low = 0, high = 0; /* the group's candidates */
        for (int i = 0; i < HPRIME; i++) {
            low += chosen[i] < first;
            high += chosen[i] < last;
        }
        const real weight = scale * weights[n];
        const int start = ROW_OF_PAIRS(low), stop = ROW_OF_PAIRS(high);
        for (int p = start; p < stop; p += WIDTH) {
            const lanes here = {weight * vload_row(stop - p, 0, pair + p, (size_t)(N - n) * PAIRS - stop)};
            for (int some = BITS(fabs(here.v * UNIT) >= (real)0.5); some; some &= some - 1) {
                const int lane = LOWEST_BIT(some), q = p + lane;
                sums[(size_t)chosen[of_i[q]] * H + chosen[of_j[q]]] += fixed_point(here.at[lane]);
            }
        }
    }
}

#else
/* A data point's lanes share its pairs; atomics add them up. Groups: ceil(N / TILE). */
KERNEL void pair_sums(int N, GLOBAL const int *RESTRICT candidates, GLOBAL const real *RESTRICT pairs,
                      GLOBAL const real *RESTRICT weights, real scale, GLOBAL int64 *RESTRICT sums)
{
    const int n = GROUP_ID * TILE + ROW;
    if (n >= N)
        return;
    const real weight = scale * weights[n];
    GLOBAL const int *chosen = candidates + (size_t)n * HPRIME;
    GLOBAL const real *pair = pairs + (size_t)n * (HPRIME * (HPRIME - 1) / 2);
    for (int i = 0; i < HPRIME - 1; pair += HPRIME - 1 - i, i++)
        for (int j = i + 1 + LANE; j < HPRIME; j += LANES) {
            const int64 sum = fixed_point(weight * pair[j - i - 1]);
            if (sum != 0)
                ATOMIC_ADD(sums + (size_t)chosen[i] * H + chosen[j], sum);
        }
}
#endif
