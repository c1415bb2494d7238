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
/* -------------------------------------------------------- the lanes of a data point are work-items
 * HPRIME rounds; each finds the best of what comes after the winner of the round before. */

DEVICE int before(real score, int h, real other, int other_h)
{
    return score > other || (score == other && h > other_h);
}

KERNEL void preselect(int N, GLOBAL const real *RESTRICT b, GLOBAL const real *RESTRICT slope,
                      GLOBAL const real *RESTRICT offset, GLOBAL int *RESTRICT candidates)
{
    LOCAL real scores[GROUP];
    LOCAL int indices[GROUP];
    LOCAL int winners[TILE][HPRIME];
    const int n = GROUP_ID * TILE + ROW;
    const int count = n < N ? H : 0;

    real last = REAL_INF;
    int last_h = H;
    for (int round = 0; round < HPRIME; round++) {
        real best = -REAL_INF;
        int best_h = -1;
        for (int h = LANE; h < count; h += LANES) {
            const real x = b[(size_t)n * H + h];
            real score = -REAL_INF;
            for (int v = 0; v < VALUES; v++)
                score = REAL_MAX(slope[v * H + h] * x + offset[v * H + h], score);
            if (before(last, last_h, score, h) && before(score, h, best, best_h)) {
                best = score;
                best_h = h;
            }
        }
        scores[LOCAL_ID] = best;
        indices[LOCAL_ID] = best_h;
        BARRIER();
        for (int step = LANES / 2; step > 0; step /= 2) {
            const int me = LOCAL_ID, other = me + step;
            if (LANE < step && before(scores[other], indices[other], scores[me], indices[me])) {
                scores[me] = scores[other];
                indices[me] = indices[other];
            }
            BARRIER();
        }
        last = scores[ROW * LANES];
        last_h = indices[ROW * LANES];
        if (LANE == 0)
            winners[ROW][round] = last_h;
        BARRIER();
    }

    /* From the best first to ascending: a winner's place is the number of winners below it. */
    for (int i = LANE; i < HPRIME && n < N; i += LANES) {
        int place = 0;
        for (int j = 0; j < HPRIME; j++)
            place += winners[ROW][j] < winners[ROW][i];
        candidates[(size_t)n * HPRIME + place] = winners[ROW][i];
    }
}
#endif
