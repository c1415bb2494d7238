/* check_rows.c: out[n] = 0, or -inf where y_n holds anything but 0 and 1: its log probability under binary noise.
 *
 * Groups: ceil(N / TILE). Sizes: D.
 */
KERNEL void check_rows(int N, GLOBAL const real *RESTRICT Y, GLOBAL real *RESTRICT out)
{
#if WIDTH > 1
    for (int n = GROUP_ID * TILE; n < N && n < (GROUP_ID + 1) * TILE; n++) {
        GLOBAL const real *y = Y + (size_t)n * D;
        const vec rest = vload_part(D % WIDTH, 0, y + D - D % WIDTH);
        ivec good = (rest == 0) | (rest == 1);
        for (int d = 0; d + WIDTH <= D; d += WIDTH) {
            const vec x = VLOAD(y + d);
            good &= (x == 0) | (x == 1);
        }
        out[n] = SOMEWHERE(~good) ? -REAL_INF : (real)0;
    }
#else
    LOCAL acc scratch[GROUP];
    const int n = GROUP_ID * TILE + ROW;
    acc bad = 0;
    if (n < N)
        for (int d = LANE; d < D; d += LANES)
            bad += Y[(size_t)n * D + d] != 0 && Y[(size_t)n * D + d] != 1;
    bad = lanes_sum(bad, scratch);
    if (n < N && LANE == 0)
        out[n] = bad > 0 ? -REAL_INF : (real)0;
#endif
}
