/* preselect.c: the HPRIME latents with the best scores, per data point.
 *
 *   score_h = max_v slope[v, h] b[n, h] + offset[v, h]
 *
 * candidates[n] is ascending; of equal scores the higher index wins; NaN counts as -inf.
 * Groups: ceil(N / TILE). Sizes: H, HPRIME <= H, VALUES (rows of slope and offset; 1 where a latent is on or off).
 */

#if WIDTH > 1
/* -------------------------------------------------------------- the lanes of a data point are a vector */

#define CHUNKS ((H + WIDTH - 1) / WIDTH)
#define TOPS ((2 * HPRIME + WIDTH - 1) / WIDTH) /* maxima: about two for each candidate make a tight bound */

/* The HPRIME-th largest of the TOPS * WIDTH maxima in `top`. */
DEVICE real bound(const lanes *top)
{
    vec least = (vec)(REAL_INF);
    for (int t = 0; t < TOPS; t++) {
        vec larger = (vec)(0);
        for (int i = 0; i < TOPS * WIDTH; i++)
            larger = top[i / WIDTH].at[i % WIDTH] > top[t].v ? larger + 1 : larger;
        least = larger < HPRIME && top[t].v < least ? top[t].v : least;
    }
    return -highest(-least);
}

/* Drop the worst of the list, of equals the first, until `most` are left; it stays ascending. */
DEVICE int thin_out(int *found, int count, int most, const real *score)
{
    for (int next = most; next < count; next++) {
        int worst = 0;
        for (int i = 1; i < most; i++)
            worst = score[found[i]] < score[found[worst]] ? i : worst;
        if (score[found[next]] >= score[found[worst]]) {
            for (int i = worst; i < most - 1; i++)
                found[i] = found[i + 1];
            found[most - 1] = found[next];
        }
    }
    return count < most ? count : most;
}

/* Leave the HPRIME best of the list, of equals the last. A vector's worth are ranked at once: each counts its betters. */
DEVICE void keep_best(int *found, int count, const real *score)
{
    count = thin_out(found, count, HPRIME > WIDTH ? HPRIME : WIDTH, score);
    if (count == HPRIME)
        return;
    lanes mine = {(vec)(-REAL_INF)};
    for (int i = 0; i < count; i++)
        mine.at[i] = score[found[i]];
    ivec betters = (ivec)(0);
    for (int i = 0; i < count; i++)
        betters -= (mine.at[i] > mine.v) | ((mine.at[i] == mine.v) & (i > NUMBERS));
    int best = BITS(betters < HPRIME) & ((1 << count) - 1);
    for (int i = 0; i < HPRIME; i++, best &= best - 1)
        found[i] = found[LOWEST_BIT(best)];
}

KERNEL void preselect(int N, GLOBAL const real *RESTRICT b, GLOBAL const real *RESTRICT slope,
                      GLOBAL const real *RESTRICT offset, GLOBAL int *RESTRICT candidates)
{
    /* The lines, filled up to whole vectors with scores of -inf. */
    vec slopes[VALUES][CHUNKS], offsets[VALUES][CHUNKS];
    for (int v = 0; v < VALUES; v++)
        for (int c = 0; c < CHUNKS; c++) {
            const int h = c * WIDTH;
            slopes[v][c] = vload_row(H - h, 0, slope + v * H + h, 0);
            offsets[v][c] = vload_row(H - h, -REAL_INF, offset + v * H + h, 0);
        }

    for (int n = GROUP_ID * TILE; n < N && n < (GROUP_ID + 1) * TILE; n++) {
        GLOBAL const real *row = b + (size_t)n * H;
        union {
            vec v[CHUNKS];
            real at[CHUNKS * WIDTH];
        } score;
        lanes top[TOPS];
        for (int t = 0; t < TOPS; t++)
            top[t].v = (vec)(-REAL_INF);
        for (int c = 0; c < CHUNKS; c++) {
            const int h = c * WIDTH;
            const vec x = vload_row(H - h, 0, row + h, (size_t)(N - 1 - n) * H);
            vec best = (vec)(-REAL_INF);
            for (int v = 0; v < VALUES; v++)
                best = VMAX(slopes[v][c] * x + offsets[v][c], best);
            score.v[c] = best;
            top[c % TOPS].v = VMAX(best, top[c % TOPS].v);
        }

        /* Few scores reach the bound, at least HPRIME of them: list these, ascending by index. */
        const real least = bound(top);
        int found[CHUNKS * WIDTH + 1], count = 0;
        for (int first = 0; first < CHUNKS; first += 64 / WIDTH) { /* 64 at a time: a branch costs more than a bit */
            ulong reach = 0;
            for (int c = first; c < first + 64 / WIDTH && c < CHUNKS; c++)
                reach |= (ulong)(uint)BITS(score.v[c] >= least) << (c - first) * WIDTH;
            if (first * WIDTH + 64 > H)
                reach &= ((ulong)1 << H % 64) - 1;
            for (; reach; reach &= reach - 1)
                found[count++] = first * WIDTH + (int)popcount((reach & -reach) - 1);
        }
        keep_best(found, count, score.at);
        for (int i = 0; i < HPRIME; i++)
            candidates[(size_t)n * HPRIME + i] = found[i];
    }
}

#else
/* ------------------------------------------- GPUs: a data point in each work-item (TILE is GROUP)
 * Not the text above, in which all lanes are one row's: a list of its own costs a work-item less than meeting others.
 * Scores are read once, by rows that neighbours share, through local memory. */

#define STAGED 16 /* latents at a time */
#define TOGETHER 4 /* of these are compared with the list at once */

/* The list is in descending order; of equals the later latent comes first. */
DEVICE void insert(real score, int h, real *best, int *latent)
{
#pragma unroll
    for (int i = 0; i < HPRIME; i++) {
        const int better = score >= best[i], other_h = latent[i];
        const real other = best[i];
        best[i] = better ? score : other;
        latent[i] = better ? h : other_h;
        score = better ? other : score;
        h = better ? other_h : h;
    }
}

KERNEL void preselect(int N, GLOBAL const real *RESTRICT b, GLOBAL const real *RESTRICT slope,
                      GLOBAL const real *RESTRICT offset, GLOBAL int *RESTRICT candidates)
{
    LOCAL real staged[TILE][STAGED + 1], slopes[VALUES][STAGED], offsets[VALUES][STAGED];
    const size_t first = (size_t)GROUP_ID * TILE, n = first + LOCAL_ID;
    const int rows = N - first < TILE ? N - first : TILE;
    real best[HPRIME];
    int latent[HPRIME];
#pragma unroll
    for (int i = 0; i < HPRIME; i++) {
        best[i] = -REAL_INF;
        latent[i] = -1;
    }
    for (int start = 0; start < H; start += STAGED) {
        const int count = H - start < STAGED ? H - start : STAGED, column = LOCAL_ID % STAGED;
        BARRIER(); /* what was staged before has been used */
        if (column < count)
            for (int r = LOCAL_ID / STAGED; r < rows; r += GROUP / STAGED)
                staged[r][column] = b[(first + r) * H + start + column];
        for (int i = LOCAL_ID; i < VALUES * count; i += GROUP) {
            slopes[i / count][i % count] = slope[i / count * H + start + i % count];
            offsets[i / count][i % count] = offset[i / count * H + start + i % count];
        }
        BARRIER();
        for (int c = 0; c < count && n < (size_t)N; c += TOGETHER) {
            real score[TOGETHER], top = -REAL_INF;
#pragma unroll
            for (int i = 0; i < TOGETHER; i++) {
                score[i] = -REAL_INF;
                for (int v = 0; v < VALUES && c + i < count; v++)
                    score[i] = REAL_MAX(slopes[v][c + i] * staged[LOCAL_ID][c + i] + offsets[v][c + i], score[i]);
                top = REAL_MAX(score[i], top);
            }
            if (top < best[HPRIME - 1])
                continue;
#pragma unroll
            for (int i = 0; i < TOGETHER; i++)
                if (score[i] >= best[HPRIME - 1] && c + i < count)
                    insert(score[i], start + c + i, best, latent);
        }
    }
    if (n >= (size_t)N)
        return;

    /* From the best first to ascending: a winner's place is the number of winners below it. */
#pragma unroll
    for (int i = 0; i < HPRIME; i++) {
        int place = 0;
#pragma unroll
        for (int j = 0; j < HPRIME; j++)
            place += latent[j] < latent[i];
        candidates[n * HPRIME + place] = latent[i];
    }
}
#endif
