/* spike_slab_scores.c: the log joint of every latent by itself, relative to the zero state: energies and scores in one.
 *
 *   scores_nh = offset_h + (r^2 / A - log A) / 2,    r = b_nh + pull_h,  A = 1 + norm_h
 *
 * Symbols and units as in spike_slab.c. Groups: ceil(N / TILE). Sizes: H; MASKED 1: norms has a row for each n.
 */
KERNEL void spike_slab_scores(int N, GLOBAL const real *RESTRICT b, GLOBAL const real *RESTRICT norms,
                              GLOBAL const real *RESTRICT latents, GLOBAL real *RESTRICT scores)
{
#if WIDTH > 1
    for (int n = GROUP_ID * TILE; n < N && n < (GROUP_ID + 1) * TILE; n++) {
        GLOBAL const real *row = b + (size_t)n * H, *norm = norms + (MASKED ? (size_t)n * H : 0);
        for (int h = 0; h < H; h += WIDTH) {
            const int whole = h + WIDTH <= H;
            const vec A = 1 + (whole ? VLOAD(norm + h) : vload_part(H % WIDTH, 0, norm + h));
            const vec field = whole ? VLOAD(row + h) : vload_part(H % WIDTH, 0, row + h);
            const vec pull = whole ? VLOAD(latents + h) : vload_part(H % WIDTH, 0, latents + h);
            const vec offset = whole ? VLOAD(latents + H + h) : vload_part(H % WIDTH, 0, latents + H + h);
            const vec r = field + pull, score = offset + (r * r / A - vlog(A)) / 2;
            if (whole)
                VSTORE(score, scores + (size_t)n * H + h);
            else
                vstore_part(score, H % WIDTH, scores + (size_t)n * H + h);
        }
    }
#else
    const size_t n = (size_t)GROUP_ID * TILE + ROW;
    for (int h = LANE; h < H && n < (size_t)N; h += LANES) {
        const real A = 1 + norms[(MASKED ? n * H : 0) + h], r = b[n * H + h] + latents[h];
        scores[n * H + h] = latents[H + h] + (r * r / A - REAL_LOG(A)) / 2;
    }
#endif
}
