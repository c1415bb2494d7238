/* spike_slab_scores.c: the log joint of every latent by itself, relative to the zero state: energies and scores in one.
 *
 *   scores_nh = offset_h + (r^2 / A - log A) / 2,    r = b_nh + pull_h,  A = 1 + norm_h
 *
 * Symbols and units as in spike_slab.c. Groups: ceil(N / TILE). Sizes: H; MASKED 1: norms has a row for each n.
 */
KERNEL void spike_slab_scores(int N, GLOBAL const real *RESTRICT b, GLOBAL const real *RESTRICT norms,
                              GLOBAL const real *RESTRICT latents, GLOBAL real *RESTRICT scores)
{
    const int start = WARP * WIDTH, rows = N - start < WIDTH ? N - start : WIDTH;
    for (int h = 0; h < H; h += WIDTH) {
        const vec pull = vload_row(H - h, 0, latents + h, 0), offset = vload_row(H - h, 0, latents + H + h, 0);
        vec A = 1 + vload_row(H - h, 0, norms + h, 0), log_A = vlog(A);
        for (int r = 0; r < rows; r++) {
            const size_t at = (size_t)(start + r) * H + h, after = (size_t)(rows - 1 - r) * H;
            if (MASKED) {
                A = 1 + vload_row(H - h, 0, norms + at, after);
                log_A = vlog(A);
            }
            const vec field = vload_row(H - h, 0, b + at, after) + pull;
            vstore_row(offset + (field * field / A - log_A) / 2, H - h, scores + at, after);
        }
    }
}
