/* accumulate.c: total[start + i] += (scale + rest) * the sum over `many` rows of rows[r, i], for i < N, in `acc`.
 *
 * What a batch adds to the sums of a step, which stay on the device. `rest` is what `scale` lost to rounding.
 * Groups: ceil(N / TILE), TILE columns each. Sizes: COLUMNS (= TILE on GPUs), KIND of the rows: 0 `real`, 1 `acc`,
 * 2 whole numbers in units of 2^-40 (pair_sums.c).
 */
#if KIND == 0
typedef real element;
#elif KIND == 1
typedef acc element;
#else
typedef int64 element;
#endif
#define UNIT (KIND == 2 ? (acc)9.094947017729282e-13 : (acc)1) /* 2^-40 */

KERNEL void accumulate(int N, GLOBAL const element *RESTRICT rows, int many, real scale, real rest, int start,
                       GLOBAL acc *RESTRICT total)
{
    const acc factor = ((acc)scale + (acc)rest) * UNIT;
#if WIDTH > 1
    for (int i = GROUP_ID * TILE; i < N && i < (GROUP_ID + 1) * TILE; i++) {
        acc sum = 0;
        for (int r = 0; r < many; r++)
            sum += rows[(size_t)r * N + i];
        total[start + i] += factor * sum;
    }
#else
    /* Neighbouring work-items take neighbouring columns; the LANES of a column, TILE apart, share its rows. */
    LOCAL acc scratch[GROUP];
    const int column = (int)((unsigned int)LOCAL_ID % TILE), lane = (int)((unsigned int)LOCAL_ID / TILE);
    const int i = GROUP_ID * TILE + column;
    acc sum = 0;
    if (i < N)
        for (int r = lane; r < many; r += LANES)
            sum += rows[(size_t)r * N + i];
    scratch[LOCAL_ID] = sum;
    BARRIER();
    for (int other = 1; lane == 0 && other < LANES; other++)
        sum += scratch[other * TILE + column];
    if (lane == 0 && i < N)
        total[start + i] += factor * sum;
#endif
}
