/* squared_norms.c: out[n] = |y_n|^2, summed in `acc`.
 *
 * Groups: ceil(N / TILE). Sizes: D.
 */
KERNEL void squared_norms(int N, GLOBAL const real *RESTRICT Y, GLOBAL real *RESTRICT out)
{
#if WIDTH > 1
    for (int n = GROUP_ID * TILE; n < N && n < (GROUP_ID + 1) * TILE; n++) {
        GLOBAL const real *y = Y + (size_t)n * D;
        const accs rest = VACC(vload_part(D % WIDTH, 0, y + D - D % WIDTH));
        accs sums = rest * rest;
        for (int d = 0; d + WIDTH <= D; d += WIDTH) {
            const accs x = VACC(VLOAD(y + d));
            sums += x * x;
        }
        out[n] = (real)total(sums);
    }
#else
    LOCAL acc scratch[GROUP];
    const int n = GROUP_ID * TILE + ROW;
    acc sum = 0;
    if (n < N)
        for (int d = LANE; d < D; d += LANES) {
            const acc x = Y[(size_t)n * D + d];
            sum += x * x;
        }
    sum = lanes_sum(sum, scratch);
    if (n < N && LANE == 0)
        out[n] = (real)sum;
#endif
}
