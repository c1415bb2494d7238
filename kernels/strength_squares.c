/* strength_squares.c: <s z^2> from the moments about the prior's mean mu, in place of `square`, in units of psi.
 *
 *   square_nh = max(0, psi_h square_nh + mu_h (2 <s z>_nh - mu_h <s>_nh)),    psi = spread^2, mu = pull spread
 *
 * `latents` as in spike_slab.c. Groups: ceil(N / TILE). Sizes: H.
 */
KERNEL void strength_squares(int N, GLOBAL const real *RESTRICT s, GLOBAL const real *RESTRICT sz,
                             GLOBAL const real *RESTRICT latents, GLOBAL real *RESTRICT square)
{
    for (int n = GROUP_ID * TILE; n < N && n < (GROUP_ID + 1) * TILE; n++)
        for (int h = LOCAL_ID; h < H; h += GROUP) {
            const size_t at = (size_t)n * H + h;
            const real spread = latents[2 * H + h], mu = latents[h] * spread;
            square[at] = REAL_MAX(spread * spread * square[at] + mu * (2 * sz[at] - mu * s[at]), 0);
        }
}
