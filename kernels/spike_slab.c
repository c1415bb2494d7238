/* spike_slab.c: the truncated posterior of switches s_h in {0, 1} with Gaussian strengths z_h, integrated over z (GSC).
 *
 * Strengths are measured in prior standard deviations, u_h = z_h / sqrt(psi_h), and fields in those of the noise,
 * V_h = W_h sqrt(psi_h) / sigma. Of the active latents of s then
 *
 *   A = 1 + V_s'V_s,  r = V_s'y / sigma + pull_s          the posterior of u is N(A^-1 r, A^-1), and
 *   E(s) = sum_i offset_i + (r'A^-1 r - log|A|) / 2       E(0) = 0; pull = mu / sqrt(psi), offset = log prior odds
 *                                                         - pull^2 / 2
 *   K_n  = {0}, the H singletons, the states of 2 ... GAMMA active latents, all of them candidates
 *   q(s) ~ exp(beta E(s) + sum_i shift_i) over K_n
 *
 *   b (N, H)              in: V'y / sigma; out: <s_h u_h> spread_h
 *   gram (H, H)           V'V; MASKED 1: (N, PAIRS), of the candidates i < j of each n, row after row
 *   norms (H,)            its diagonal; MASKED 1: (N, H)
 *   latents (4, H)        the rows pull, offset, spread, shift
 *   mean (N, H)           in: E of the singletons (spike_slab_scores.c); out: <s>
 *   log_evidence (N,)     log sum over K_n of exp E(s), unannealed
 *   square (N, H)         <s_h (u_h - pull_h)^2>: about the prior's mean, so that a large one costs no digits
 *   pairs (N, PAIRS)      <s_i u_i s_j u_j>, i < j positions among the candidates, row after row
 *   full (N,)             1 where GAMMA latents are active in the state of the largest E, else 0
 *
 * The states of several candidates are enumerated with a data point in each lane: a walk through prefixes, each of which
 * is eliminated from what later candidates k bring along, A_kk, A_kl and r_k. So k's strength given the prefix is
 * N(mean_k, variance_k), that of the prefix's last candidate j given later ones N(mean_j - sum_k gain_k u_k, variance_j),
 * gain_k = A_jk variance_j, and a state of any size costs what its last candidate does: sums over the states behind a
 * prefix need its last candidate only once they are complete. Weights are relative to an exponent that grows when one
 * is larger by HEADROOM.
 *
 * A pivot of A is that of a matrix >= 1, so it is at least 1, whatever rounding says.
 *
 * Groups: ceil(N / TILE). Sizes: H, HPRIME, GAMMA, MASKED; ANNEAL 0 promises beta = 1 and shift = 0.
 */
#define PAIRS (HPRIME * (HPRIME - 1) / 2)
#define PAIR(i, j) ((i) * (2 * HPRIME - (i) - 1) / 2 + (j) - (i) - 1) /* the number of the pair i < j */
#define LEVELS (GAMMA < HPRIME ? GAMMA : HPRIME) /* the most latents a state of several candidates has on */
#define DEPTH (LEVELS > 2 ? LEVELS - 1 : 1) /* of prefixes that two or more candidates follow */
#define HEADROOM ((real)40.)

/* The exponent of q for a state of energy E whose shifts add up to `shift`. */
#if ANNEAL
#define ANNEALED(E, shift) (beta * (E) + (shift))
#else
#define ANNEALED(E, shift) (E)
#endif

typedef struct { /* the candidates' latents */
    lanes pull[HPRIME], offset[HPRIME], shift[HPRIME];
} candidates_of;

typedef struct { /* what a prefix leaves of the later candidates: A and r without it */
    lanes pivot[HPRIME], field[HPRIME], coupling[PAIRS + 1]; /* + 1: an array cannot be empty */
} prefix;

typedef struct { /* of the state of a prefix and candidate k: u_k, and E */
    vec variance[HPRIME], mean[HPRIME];
    lanes energy[HPRIME];
    vec shift; /* of the prefix */
} last;

typedef struct { /* sums over the states of a prefix and several later candidates, as the arguments of that name */
    vec weight;
    lanes mean[HPRIME], product[HPRIME], square[HPRIME], pair[PAIRS + 1];
} moments;

typedef struct { /* a walk through prefixes: number d has d candidates */
    candidates_of of;
    prefix path[DEPTH];
    last one[LEVELS + 1];
    moments sums[DEPTH];
    lanes peak;        /* what exponents are relative to, at least the largest of a singleton */
    lanes best;        /* the largest E so far: what weights at beta = 1 are relative to */
    vec weight1, most; /* of states of several: their weight at beta = 1; the largest E of LEVELS candidates */
} walk;

DEVICE void clear(moments *sums)
{
    sums->weight = (vec)(0);
    for (int k = 0; k < HPRIME; k++)
        sums->mean[k].v = sums->product[k].v = sums->square[k].v = (vec)(0);
    for (int p = 0; p < PAIRS; p++)
        sums->pair[p].v = (vec)(0);
}

DEVICE void rescale(moments *sums, vec factor)
{
    sums->weight *= factor;
    for (int k = 0; k < HPRIME; k++) {
        sums->mean[k].v *= factor;
        sums->product[k].v *= factor;
        sums->square[k].v *= factor;
    }
    for (int p = 0; p < PAIRS; p++)
        sums->pair[p].v *= factor;
}

/* From prefix d to that with j, number d + 1: its states, and the peaks with them. */
DEVICE void extend(walk *w, int d, int j, real beta)
{
    const prefix *above = w->path + d;
    last *one = w->one + d + 1;
    const vec variance = w->one[d].variance[j], mean = w->one[d].mean[j], energy = w->one[d].energy[j].v;
    vec peak = w->peak.v, best = w->best.v;
    one->shift = w->one[d].shift + w->of.shift[j].v;
    for (int k = j + 1; k < HPRIME; k++) {
        const vec coupling = above->coupling[PAIR(j, k)].v;
        const vec pivot = VMAX(above->pivot[k].v - coupling * coupling * variance, (vec)(1));
        const vec field = above->field[k].v - coupling * mean;
        if (d + 2 < LEVELS) {
            w->path[d + 1].pivot[k].v = pivot;
            w->path[d + 1].field[k].v = field;
        }
        one->variance[k] = 1 / pivot;
        one->mean[k] = field * one->variance[k];
        const vec E = energy + w->of.offset[k].v + (field * one->mean[k] - vlog(pivot)) / 2;
        one->energy[k].v = E;
        peak = VMAX(ANNEALED(E, one->shift + w->of.shift[k].v), peak);
        best = VMAX(E, best);
        if (d + 2 == LEVELS)
            w->most = VMAX(E, w->most);
    }
    if (WHERE(peak > w->peak.v + HEADROOM)) {
        const vec factor = vexp(w->peak.v - peak);
        for (int level = 0; level <= d; level++)
            rescale(w->sums + level, factor);
        w->peak.v = peak;
    }
    if (ANNEAL)
        w->weight1 *= vexp(w->best.v - best);
    w->best.v = best;
}

/* Candidate j's part in states of prefix d, j and later ones: their weight, and the sums of gain u and (gain u)^2. */
DEVICE void count_last(walk *w, int d, int j, vec weight, vec first, vec second)
{
    const vec mean = w->one[d].mean[j], apart = mean - w->of.pull[j].v;
    moments *sums = w->sums + d;
    sums->weight += weight;
    sums->mean[j].v += weight;
    sums->product[j].v += weight * mean - first;
    sums->square[j].v += weight * (w->one[d].variance[j] + apart * apart) - 2 * apart * first + second;
}

/* The states of prefix d, j, and one more, to the sums behind prefix d. */
DEVICE void count(walk *w, int d, int j, real beta)
{
    const last *one = w->one + d + 1;
    const vec variance = w->one[d].variance[j], mean = w->one[d].mean[j];
    moments *sums = w->sums + d;
    vec weights = (vec)(0), first = (vec)(0), second = (vec)(0);
    for (int k = j + 1; k < HPRIME; k++) {
        const vec x = ANNEALED(one->energy[k].v, one->shift + w->of.shift[k].v) - w->peak.v;
        if (ANNEAL)
            w->weight1 += vexp(one->energy[k].v - w->best.v);
        if (WHERE(x > FAINT_ENERGY)) {
            const vec weight = vexp(x), u = one->mean[k], apart = u - w->of.pull[k].v, product = weight * u;
            const vec gain = w->path[d].coupling[PAIR(j, k)].v * variance;
            const vec gained = gain * (weight * one->variance[k] + product * u);
            weights += weight;
            first += gain * product;
            second += gain * gained;
            sums->mean[k].v += weight;
            sums->product[k].v += product;
            sums->square[k].v += weight * (one->variance[k] + apart * apart);
            sums->pair[PAIR(j, k)].v += mean * product - gained;
        }
    }
    count_last(w, d, j, weights, first, second);
}

/* To walk on from prefix d and j: couplings of later candidates, and no sums yet. */
DEVICE void descend(walk *w, int d, int j)
{
    const prefix *above = w->path + d;
    for (int i = j + 1; i < HPRIME; i++) {
        const vec gain = above->coupling[PAIR(j, i)].v * w->one[d].variance[j];
        for (int k = i + 1; k < HPRIME; k++)
            w->path[d + 1].coupling[PAIR(i, k)].v = above->coupling[PAIR(i, k)].v - gain * above->coupling[PAIR(j, k)].v;
    }
    clear(w->sums + d + 1);
}

/* The sums behind prefix d and j are complete: they belong to those behind prefix d, and so does j's part in them. */
DEVICE void ascend(walk *w, int d, int j)
{
    const moments *behind = w->sums + d + 1;
    moments *sums = w->sums + d;
    vec gain[HPRIME], gained[HPRIME], first = (vec)(0), second = (vec)(0);
    for (int k = j + 1; k < HPRIME; k++) {
        const vec pull = w->of.pull[k].v, product = behind->product[k].v;
        gain[k] = w->path[d].coupling[PAIR(j, k)].v * w->one[d].variance[j];
        gained[k] = gain[k] * (behind->square[k].v + pull * (2 * product - pull * behind->mean[k].v));
        sums->mean[k].v += behind->mean[k].v;
        sums->product[k].v += product;
        sums->square[k].v += behind->square[k].v;
    }
    for (int i = j + 1; i < HPRIME; i++)
        for (int k = i + 1; k < HPRIME; k++) {
            const vec pair = behind->pair[PAIR(i, k)].v;
            sums->pair[PAIR(i, k)].v += pair;
            gained[i] += gain[k] * pair;
            gained[k] += gain[i] * pair;
        }
    for (int k = j + 1; k < HPRIME; k++) {
        const vec product = behind->product[k].v;
        first += gain[k] * product;
        second += gain[k] * gained[k];
        sums->pair[PAIR(j, k)].v += w->one[d].mean[j] * product - gained[k];
    }
    count_last(w, d, j, behind->weight, first, second);
}

/* Walk through all prefixes, depth first. */
DEVICE void superpose(walk *w, real beta)
{
    int grown[DEPTH]; /* prefix d + 1 is prefix d and candidate grown[d] */
    int d = 0, j = LEVELS > 1 ? 0 : HPRIME;
    clear(w->sums);
    while (d > 0 || j < HPRIME - 1) {
        if (j < HPRIME - 1) {
            extend(w, d, j, beta);
            count(w, d, j, beta);
            if (d + 2 < LEVELS && j + 2 < HPRIME) {
                descend(w, d, j);
                grown[d++] = j;
            }
        } else {
            j = grown[--d];
            ascend(w, d, j);
        }
        j++;
    }
}

/* The weights of a data point's singletons replace their energies, `row`, of which the array goes on for `after`. Their
 * peak is at least the zero state's. */
DEVICE void weigh_singletons(LANES_PARAM int r, GLOBAL real *row, GLOBAL const real *shift, real beta, size_t after,
                             walk *w, lanes *weight, lanes *weight1)
{
    vec high = (vec)(0), high1 = (vec)(0);
    accs sum = VACC((vec)(0)), sum1 = VACC((vec)(0));
    for (int h = 0; h < H; h += WIDTH) {
        const vec E = vload_row(H - h, -REAL_INF, row + h, after);
        high = VMAX(ANNEALED(E, vload_row(H - h, 0, shift + h, 0)), high);
        high1 = VMAX(E, high1);
    }
    const real peak = highest(high), best = ANNEAL ? highest(high1) : peak;
    for (int h = 0; h < H; h += WIDTH) {
        const vec E = vload_row(H - h, -REAL_INF, row + h, after);
        const vec q = vexp(ANNEALED(E, vload_row(H - h, 0, shift + h, 0)) - peak);
        vstore_row(q, H - h, row + h, after);
        sum += VACC(q);
        if (ANNEAL)
            sum1 += VACC(vexp(E - best));
    }
    const real whole = (real)total(sum), whole1 = ANNEAL ? (real)total(sum1) : whole;
    SET(w->peak, r, peak);
    SET(w->best, r, best);
    SET(*weight, r, whole);
    SET(*weight1, r, whole1);
}

/* A data point's moments, were there singletons only: `scale` times their weights, `mean`, makes probabilities. */
DEVICE void count_singletons(real scale, GLOBAL real *mean, GLOBAL real *b, GLOBAL real *square, GLOBAL const real *norm,
                             GLOBAL const real *latents, size_t after)
{
    for (int h = 0; h < H; h += WIDTH) {
        const vec variance = 1 / (1 + vload_row(H - h, 0, norm + h, MASKED ? after : 0));
        const vec pull = vload_row(H - h, 0, latents + h, 0);
        const vec u = variance * (vload_row(H - h, 0, b + h, after) + pull);
        const vec q = scale * vload_row(H - h, 0, mean + h, after);
        const vec product = q * u * vload_row(H - h, 0, latents + 2 * H + h, 0);
        vstore_row(q, H - h, mean + h, after);
        vstore_row(fabs(product) < REAL_LEAST ? (vec)(0) : product, H - h, b + h, after);
        vstore_row(q * (variance + (u - pull) * (u - pull)), H - h, square + h, after);
    }
}

KERNEL void spike_slab(int N, GLOBAL real *RESTRICT b, GLOBAL const real *RESTRICT gram,
                       GLOBAL const real *RESTRICT norms, GLOBAL const real *RESTRICT latents,
                       GLOBAL const int *RESTRICT candidates, real beta, GLOBAL real *RESTRICT mean,
                       GLOBAL real *RESTRICT log_evidence, GLOBAL real *RESTRICT square, GLOBAL real *RESTRICT pairs,
                       GLOBAL real *RESTRICT full)
{
    LANES_BEGIN;
    GLOBAL const real *pull = latents, *offset = latents + H, *spread = latents + 2 * H, *shift = latents + 3 * H;
    const int start = WARP * WIDTH, rows = N - start < WIDTH ? N - start : WIDTH;
    walk w;
    lanes weight, weight1; /* of singletons */

    w.one->shift = w.weight1 = w.peak.v = w.best.v = weight.v = weight1.v = (vec)(0);
    w.most = (vec)(-REAL_INF);
    for (int i = 0; i < HPRIME; i++) { /* where there is no data point: latents of no effect */
        w.of.pull[i].v = w.of.offset[i].v = w.of.shift[i].v = w.one->energy[i].v = w.path->field[i].v = (vec)(0);
        w.path->pivot[i].v = (vec)(1);
    }
    for (int p = 0; p < PAIRS; p++)
        w.path->coupling[p].v = (vec)(0);
    EACH_LANE(r, rows) {
        const size_t n = start + r;
        GLOBAL const int *chosen = candidates + n * HPRIME;
        ROLLED for (int i = 0; i < HPRIME; i++) {
            const int h = chosen[i];
            MINE(w.one->energy[i], r) = mean[n * H + h];
            MINE(w.path->pivot[i], r) = 1 + norms[(MASKED ? n * H : 0) + h];
            MINE(w.path->field[i], r) = b[n * H + h] + pull[h];
            MINE(w.of.pull[i], r) = pull[h];
            MINE(w.of.offset[i], r) = offset[h];
            if (ANNEAL)
                MINE(w.of.shift[i], r) = shift[h];
            for (int j = i + 1; j < HPRIME; j++)
                MINE(w.path->coupling[PAIR(i, j)], r) =
                    gram[MASKED ? n * PAIRS + PAIR(i, j) : (size_t)h * H + chosen[j]];
        }
    }
    MEET();
    for (int r = 0; r < rows; r++)
        weigh_singletons(LANES_ARG r, mean + (size_t)(start + r) * H, shift, beta, (size_t)(rows - 1 - r) * H, &w, &weight,
                         &weight1);

    const lanes peak = w.peak, best = w.best;
    for (int i = 0; i < HPRIME; i++) {
        w.one->variance[i] = 1 / w.path->pivot[i].v;
        w.one->mean[i] = w.path->field[i].v * w.one->variance[i];
    }
    superpose(&w, beta);

    /* All together: the zero state, the singletons, the others. */
    lanes evidence, scale, scale_several, is_full;
    const vec of_singletons = vexp(peak.v - w.peak.v);
    scale_several.v = 1 / (vexp(-w.peak.v) + of_singletons * weight.v + w.sums->weight);
    scale.v = of_singletons * scale_several.v;
    evidence.v = ANNEAL ? w.best.v + vlog(vexp(-w.best.v) + vexp(best.v - w.best.v) * weight1.v + w.weight1)
                        : w.peak.v - vlog(scale_several.v);
    is_full.v = (LEVELS > 1 ? w.most >= w.best.v : w.best.v > 0) ? (vec)(1) : (vec)(0);
    vstore_row(evidence.v, rows, log_evidence + start, 0);
    vstore_row(is_full.v, rows, full + start, 0);
    for (int r = 0; r < rows; r++) {
        const size_t row = (size_t)(start + r) * H;
        count_singletons(AT(scale, r), mean + row, b + row, square + row, norms + (MASKED ? row : 0), latents,
                         (size_t)(rows - 1 - r) * H);
    }
    MEET();
    EACH_LANE(r, rows) {
        const size_t n = start + r;
        const real part = MINE(scale_several, r);
        for (int i = 0; i < HPRIME; i++) {
            const size_t h = candidates[n * HPRIME + i];
            const real product = b[n * H + h] + part * MINE(w.sums->product[i], r) * spread[h];
            mean[n * H + h] += part * MINE(w.sums->mean[i], r);
            b[n * H + h] = SETTLED(product);
            square[n * H + h] += part * MINE(w.sums->square[i], r);
        }
        ROLLED for (int p = 0; p < PAIRS; p++)
            pairs[n * PAIRS + p] = part * MINE(w.sums->pair[p], r);
    }
}
