/* state_pairs.c: sums[i, j] += scale * sum_n counts[n] sum_s weights[n, s] s_i s_j over the active latents i < j of
 * COUNT explicit states of each data point.
 *
 * Whole numbers in units of 2^-40, as in pair_sums.c. Sizes: H, WORDS (of a state), COUNT.
 */
#define UNIT ((real)1099511627776.0) /* 2^40 */

DEVICE int64 fixed_point(real x)
{
    return (int64)(x * UNIT + (x < 0 ? (real)-0.5 : (real)0.5));
}

#if GROUP == 1
/* A CPU's groups read all data points, and each owns some rows of the sums: no atomics. Of low rows there are more
 * pairs i < j, and a group has fewer. Groups: one for each compute unit. */
#define FIRST ((int)(H * (1 - sqrt(1 - (float)GROUP_ID / GROUPS))))
#define LAST (GROUP_ID + 1 < GROUPS ? (int)(H * (1 - sqrt(1 - (float)(GROUP_ID + 1) / GROUPS))) : H)
#define POINTS(n) for (int n = 0; n < N; n++)
#define ADD(sum, value) *(sum) += (value)
#else
/* A state in each work-item; atomics add them up. Groups: ceil(N / TILE). */
#define FIRST 0
#define LAST H
#define POINTS(n) for (int n = GROUP_ID * TILE; n < N && n < (GROUP_ID + 1) * TILE; n++)
#define ADD(sum, value) ATOMIC_ADD(sum, value)
#endif

KERNEL void state_pairs(int N, GLOBAL const unsigned int *RESTRICT sets, GLOBAL const real *RESTRICT weights,
                        GLOBAL const real *RESTRICT counts, real scale, GLOBAL int64 *RESTRICT sums)
{
    const int first = FIRST, last = LAST;
    POINTS(n)
    {
        for (int k = LOCAL_ID; k < COUNT; k += GROUP) {
            GLOBAL const unsigned int *state = sets + ((size_t)n * COUNT + k) * WORDS;
            const int64 value = fixed_point(scale * counts[n] * weights[(size_t)n * COUNT + k]);
            if (value == 0)
                continue;
            for (int v = first / 32; v < WORDS && 32 * v < last; v++)
                for (unsigned int bits = state[v]; bits; bits &= bits - 1) {
                    const int i = 32 * v + LOWEST_BIT(bits);
                    if (i < first || i >= last)
                        continue;
                    for (int u = v; u < WORDS; u++)
                        for (unsigned int above = u > v ? state[u] : bits & (bits - 1); above; above &= above - 1)
                            ADD(sums + (size_t)i * H + 32 * u + LOWEST_BIT(above), value);
                }
        }
    }
}
