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
 * The last pivot of a Cholesky factor of A is that of a matrix >= 1, so it is at least 1, whatever rounding says.
 *
 * Groups: ceil(N / TILE); any number, if SPILLED. Sizes: H, HPRIME, GAMMA, MASKED; ANNEAL 0 promises beta = 1 and shift = 0.
 */
#define PAIRS (HPRIME * (HPRIME - 1) / 2)
#define PAIR(i, j) ((i) * (2 * HPRIME - (i) - 1) / 2 + (j) - (i) - 1) /* the number of the pair i < j */
#define LEVELS (GAMMA < HPRIME ? GAMMA : HPRIME) /* the most latents a state of several candidates has on */
#define TRIANGLE (LEVELS * (LEVELS + 1) / 2)
#define AT(i, j) ((i) * ((i) + 1) / 2 + (j)) /* row i >= column j of a triangle */

/* The exponent of q for a state of energy E whose shifts add up to `shift`. */
#if ANNEAL
#define ANNEALED(E, shift) (beta * (E) + (shift))
#else
#define ANNEALED(E, shift) (E)
#endif

#if WIDTH > 1
/* ------------------------------------------------------------------------- CPU devices: vectors of lanes
 * First the singletons, one data point after the other, with a latent in each element of a vector; then the
 * states of several candidates, with a data point in each element (TILE is WIDTH). */

typedef struct { /* what the candidates of each data point bring along */
    lanes energy[HPRIME], pivot[HPRIME], field[HPRIME], coupling[PAIRS + 1]; /* E alone; A and r */
    lanes pull[HPRIME], offset[HPRIME], shift[HPRIME];
} candidates_of;

typedef struct { /* sums over the states of several candidates; weights are relative to the peaks */
    lanes peak, weight;   /* the largest exponent of q, and the weight of all states */
    lanes peak1, weight1; /* the same at beta = 1, for the evidence */
    lanes most;           /* the largest E of LEVELS candidates, if these are several */
    lanes mean[HPRIME], product[HPRIME], square[HPRIME], pair[PAIRS + 1]; /* + 1: an array cannot be empty */
} moments;

typedef struct { /* the strengths of the active latents of a state, by number; they grow by one latent after another */
    vec inverse[LEVELS];    /* the last row of the Cholesky factor's inverse, */
    vec mean[LEVELS];       /* A^-1 r, and */
    vec variance[TRIANGLE]; /* A^-1 */
} strengths;

typedef struct { /* a prefix of d candidates, the last of them `last`, and what later candidates k add to it */
    int last;
    vec shift;
    strengths of;
    vec column[HPRIME];                                    /* row k of the Cholesky factor's last column */
    vec pivot[HPRIME], field[HPRIME], coupling[PAIRS + 1]; /* A and r, the prefix eliminated */
    vec energy[HPRIME];                                    /* of the prefix and k */
} prefix;

/* The strengths of the d candidates of path[d] and k, from those of the d candidates alone: A^-1 grows by rho rho',
 * rho the new last row of the factor's inverse. */
DEVICE void grow(const prefix *path, int d, int k, strengths *out)
{
    const vec root = 1 / sqrt(path[d].pivot[k]), step = path[d].field[k] * root;
    for (int i = 0; i < d; i++) {
        vec rho = (vec)(0);
        for (int r = i; r < d; r++)
            rho -= path[r + 1].column[k] * path[r + 1].of.inverse[i];
        out->inverse[i] = rho * root;
    }
    out->inverse[d] = root;
    for (int i = 0; i <= d; i++) {
        const vec rho = out->inverse[i];
        out->mean[i] = (i < d ? path[d].of.mean[i] : (vec)(0)) + rho * step;
        for (int j = 0; j <= i; j++)
            out->variance[AT(i, j)] = (i < d ? path[d].of.variance[AT(i, j)] : (vec)(0)) + rho * out->inverse[j];
    }
}

/* Add the state of path[d] and k to the sums. */
DEVICE void count_state(const prefix *path, int d, int k, vec weight, const candidates_of *given, moments *out)
{
    strengths u;
    grow(path, d, k, &u);
    out->weight.v += weight;
    for (int i = 0; i <= d; i++) {
        const int hi = i < d ? path[i + 1].last : k;
        const vec mean = u.mean[i], apart = mean - given->pull[hi].v;
        out->mean[hi].v += weight;
        out->product[hi].v += weight * mean;
        out->square[hi].v += weight * (u.variance[AT(i, i)] + apart * apart);
        for (int j = 0; j < i; j++)
            out->pair[PAIR(path[j + 1].last, hi)].v += weight * (u.variance[AT(i, j)] + mean * u.mean[j]);
    }
}

/* From path[d - 1] to path[d]: its last candidate is eliminated from what the later ones bring along. */
DEVICE void eliminate(prefix *path, int d, const candidates_of *given)
{
    const prefix *above = path + d - 1;
    prefix *here = path + d;
    const int j = here->last;
    const vec root = 1 / sqrt(above->pivot[j]), step = above->field[j] * root;
    here->shift = above->shift + given->shift[j].v;
    for (int k = j + 1; k < HPRIME; k++) {
        const vec l = here->column[k] = above->coupling[PAIR(j, k)] * root;
        const vec pivot = here->pivot[k] = VMAX(above->pivot[k] - l * l, (vec)(1));
        const vec field = here->field[k] = above->field[k] - l * step;
        here->energy[k] = above->energy[j] + given->offset[k].v + (field * field / pivot - vlog(pivot)) / 2;
    }
    if (d + 1 < LEVELS)
        for (int i = j + 1; i < HPRIME; i++)
            for (int k = i + 1; k < HPRIME; k++)
                here->coupling[PAIR(i, k)] = above->coupling[PAIR(i, k)] - here->column[i] * here->column[k];
}

/* Walk through all prefixes, depth first, twice: for the peaks, which begin with those of the other states, and for
 * the weights. On level d the prefix has d candidates on, and it leads to states with one more, k > last. */
DEVICE void superpose(const candidates_of *given, real beta, moments *out)
{
    prefix path[LEVELS + 1];
    path[0].shift = out->weight.v = out->weight1.v = (vec)(0);
    out->most.v = (vec)(-REAL_INF);
    for (int k = 0; k < HPRIME; k++) {
        path[0].energy[k] = given->energy[k].v;
        path[0].pivot[k] = given->pivot[k].v;
        path[0].field[k] = given->field[k].v;
        out->mean[k].v = out->product[k].v = out->square[k].v = (vec)(0);
    }
    for (int p = 0; p < PAIRS; p++) {
        path[0].coupling[p] = given->coupling[p].v;
        out->pair[p].v = (vec)(0);
    }

    for (int pass = 0; pass < 2; pass++) {
        int d = LEVELS > 1;
        path[d].last = 0;
        while (d > 0) {
            const int j = path[d].last;
            if (j + 1 < HPRIME) {
                eliminate(path, d, given);
                if (pass == 1)
                    grow(path, d - 1, j, &path[d].of);
            }
            for (int k = j + 1; k < HPRIME; k++) {
                const vec E = path[d].energy[k], exponent = ANNEALED(E, path[d].shift + given->shift[k].v);
                if (pass == 0) {
                    out->peak.v = VMAX(exponent, out->peak.v);
                    out->peak1.v = VMAX(E, out->peak1.v);
                    if (d + 1 == LEVELS)
                        out->most.v = VMAX(E, out->most.v);
                    continue;
                }
                const vec weight = vexp(exponent - out->peak.v);
                if (SOMEWHERE(weight > 0))
                    count_state(path, d, k, weight, given, out);
                if (ANNEAL)
                    out->weight1.v += vexp(E - out->peak1.v);
            }
            if (d + 1 < LEVELS && j + 2 < HPRIME) {
                path[++d].last = j + 1;
                continue;
            }
            while (++path[d].last >= HPRIME - 1 && --d > 0)
                ;
        }
    }
    if (!ANNEAL)
        out->weight1 = out->weight;
}

/* `count` <= WIDTH elements of a row, the others `fill`; and back. */
DEVICE vec load(int count, real fill, GLOBAL const real *p)
{
    return count == WIDTH ? VLOAD(p) : vload_part(H % WIDTH, fill, p);
}

DEVICE void store(vec v, int count, GLOBAL real *p)
{
    if (count == WIDTH)
        VSTORE(v, p);
    else
        vstore_part(v, H % WIDTH, p);
}

#define COUNT(h) (H - (h) < WIDTH ? H - (h) : WIDTH)

typedef struct { /* as in moments, of one data point */
    real peak, peak1, weight, weight1;
} singletons;

/* The weights of a data point's singletons replace their energies, `row`. */
DEVICE singletons weigh_singletons(GLOBAL real *row, GLOBAL const real *shift, real beta)
{
    singletons one;
    vec top = (vec)(0), top1 = (vec)(0), sum = (vec)(0), sum1 = (vec)(0);
    for (int h = 0; h < H; h += WIDTH) {
        const vec E = load(COUNT(h), -REAL_INF, row + h);
        top = VMAX(ANNEALED(E, load(COUNT(h), 0, shift + h)), top);
        top1 = VMAX(E, top1);
    }
    one.peak = highest(top);
    one.peak1 = ANNEAL ? highest(top1) : one.peak;
    for (int h = 0; h < H; h += WIDTH) {
        const vec E = load(COUNT(h), -REAL_INF, row + h);
        const vec weight = vexp(ANNEALED(E, load(COUNT(h), 0, shift + h)) - one.peak);
        sum += weight;
        if (ANNEAL)
            sum1 += vexp(E - one.peak1);
        store(weight, COUNT(h), row + h);
    }
    one.weight = (real)total(VACC(sum));
    one.weight1 = ANNEAL ? (real)total(VACC(sum1)) : one.weight;
    return one;
}

KERNEL void spike_slab(int N, GLOBAL real *RESTRICT b, GLOBAL const real *RESTRICT gram,
                       GLOBAL const real *RESTRICT norms, GLOBAL const real *RESTRICT latents,
                       GLOBAL const int *RESTRICT candidates, real beta, GLOBAL real *RESTRICT mean,
                       GLOBAL real *RESTRICT log_evidence, GLOBAL real *RESTRICT square, GLOBAL real *RESTRICT pairs,
                       GLOBAL real *RESTRICT full)
{
    GLOBAL const real *pull = latents, *offset = latents + H, *spread = latents + 2 * H, *shift = latents + 3 * H;
    const int start = GROUP_ID * WIDTH;
    const int count = N - start < WIDTH ? N - start : WIDTH;

    candidates_of given;
    moments many;
    lanes peak, peak1, weight, weight1; /* of the singletons */
    peak.v = peak1.v = weight.v = weight1.v = (vec)(0);
    for (int i = 0; i < HPRIME; i++) { /* where there is no data point: latents of no effect */
        given.energy[i].v = given.field[i].v = given.pull[i].v = given.offset[i].v = given.shift[i].v = (vec)(0);
        given.pivot[i].v = (vec)(1);
    }
    for (int p = 0; p < PAIRS; p++)
        given.coupling[p].v = (vec)(0);
    for (int r = 0; r < count; r++) {
        const size_t n = start + r;
        GLOBAL const int *chosen = candidates + n * HPRIME;
        for (int i = 0; i < HPRIME; i++) {
            const int h = chosen[i];
            given.energy[i].at[r] = mean[n * H + h];
            given.pivot[i].at[r] = 1 + norms[(MASKED ? n * H : 0) + h];
            given.field[i].at[r] = b[n * H + h] + pull[h];
            given.pull[i].at[r] = pull[h];
            given.offset[i].at[r] = offset[h];
            given.shift[i].at[r] = shift[h];
            for (int j = i + 1; j < HPRIME; j++)
                given.coupling[PAIR(i, j)].at[r] =
                    gram[MASKED ? n * PAIRS + PAIR(i, j) : (size_t)h * H + chosen[j]];
        }
        const singletons one = weigh_singletons(mean + n * H, shift, beta);
        peak.at[r] = one.peak;
        peak1.at[r] = one.peak1;
        weight.at[r] = one.weight;
        weight1.at[r] = one.weight1;
    }

    many.peak = peak;
    many.peak1 = peak1;
    superpose(&given, beta, &many);

    /* All together: the zero state, the singletons, the others. */
    lanes evidence, scale, scale_many;
    const vec rescale = vexp(peak.v - many.peak.v);
    const vec z1 = vexp(-many.peak1.v) + vexp(peak1.v - many.peak1.v) * weight1.v + many.weight1.v;
    evidence.v = many.peak1.v + vlog(z1);
    scale_many.v = 1 / (vexp(-many.peak.v) + rescale * weight.v + many.weight.v);
    scale.v = rescale * scale_many.v;

    for (int r = 0; r < count; r++) {
        const size_t n = start + r;
        GLOBAL real *row = b + n * H;
        log_evidence[n] = evidence.at[r];
        full[n] = (real)(LEVELS > 1 ? many.most.at[r] >= many.peak1.at[r] : many.peak1.at[r] > 0);
        for (int h = 0; h < H; h += WIDTH) {
            const vec variance = 1 / (1 + load(COUNT(h), 0, norms + (MASKED ? n * H : 0) + h));
            const vec about = load(COUNT(h), 0, pull + h);
            const vec u = variance * (load(COUNT(h), 0, row + h) + about);
            const vec q = scale.at[r] * load(COUNT(h), 0, mean + n * H + h);
            store(q, COUNT(h), mean + n * H + h);
            const vec product = q * u * load(COUNT(h), 0, spread + h);
            store(fabs(product) < REAL_LEAST ? (vec)(0) : product, COUNT(h), row + h);
            store(q * (variance + (u - about) * (u - about)), COUNT(h), square + n * H + h);
        }
        for (int i = 0; i < HPRIME; i++) {
            const int h = candidates[n * HPRIME + i];
            mean[n * H + h] += many.mean[i].at[r] * scale_many.at[r];
            const real product = row[h] + many.product[i].at[r] * scale_many.at[r] * spread[h];
            row[h] = SETTLED(product);
            square[n * H + h] += many.square[i].at[r] * scale_many.at[r];
        }
        for (int p = 0; p < PAIRS; p++)
            pairs[n * PAIRS + p] = many.pair[p].at[r] * scale_many.at[r];
    }
}

#else
/* --------------------------------------------------------------------- GPUs: work-items of a tile are lanes
 * A lane takes every LANES-th state, latent or pair. The states of the candidates are a table, ordered by size:
 *   STATES, STATE_MASK[s]      bit i: candidate i is on
 *   STATE_LEVEL[g]             the number of the first state with g latents on; STATE_LEVEL[0] = 0, the zero state
 * A lane factorises the matrix of a state alone, in registers; with GAMMA above 6 (on sm_100 and sm_120 from 4 on) the
 * compiler puts part of it on the thread's stack, without spills. CHUNK states at a time leave their strengths in local
 * memory, where the lanes that own the sums pick them up: no atomics. */

#define MANY STATE_LEVEL[2] /* the states before are the zero state and the candidates alone */
#define CHUNK 32
#define RECORD ((LEVELS + TRIANGLE) | 1) /* mean and variance of the strengths; odd, for the banks of local memory */

/* The Cholesky factor of a state's A, its strict rows in L and the inverse of its diagonal in root, and x = L^-1 r;
 * latents that are not there have A = 1 and r = 0. Returns (r'A^-1 r - log|A|) / 2. */
DEVICE real factorise(unsigned int mask, LOCAL_PTR const real *coupling, LOCAL_PTR const real *field, real *L,
                      real *root, real *x)
{
    int at[LEVELS];
    real E = 0;
    for (int a = 0; a < LEVELS; a++, mask &= mask - 1) {
        const int on = mask != 0;
        at[a] = on ? LOWEST_BIT(mask) : 0;
        real pivot = on ? coupling[AT(at[a], at[a])] : 1;
        x[a] = on ? field[at[a]] : 0;
        for (int b = 0; b < a; b++) {
            real l = on ? coupling[AT(at[a], at[b])] : 0;
            for (int c = 0; c < b; c++)
                l -= L[AT(a, c)] * L[AT(b, c)];
            l *= root[b];
            L[AT(a, b)] = l;
            pivot -= l * l;
            x[a] -= l * x[b];
        }
        pivot = REAL_MAX(pivot, 1);
        root[a] = 1 / sqrt(pivot);
        x[a] *= root[a];
        E += (x[a] * x[a] - REAL_LOG(pivot)) / 2;
    }
    return E;
}

/* The strengths of a state: mean and variance, into `record`. */
DEVICE void strengths(unsigned int mask, LOCAL_PTR const real *coupling, LOCAL_PTR const real *field,
                      LOCAL_PTR real *record)
{
    real L[TRIANGLE], root[LEVELS], x[LEVELS];
    factorise(mask, coupling, field, L, root, x);
    for (int a = 0; a < LEVELS; a++) { /* the factor becomes its inverse, in place */
        for (int b = 0; b < a; b++) {
            real sum = 0;
            for (int c = b; c < a; c++)
                sum -= L[AT(a, c)] * L[AT(c, b)];
            L[AT(a, b)] = sum * root[a];
        }
        L[AT(a, a)] = root[a];
    }
    for (int a = 0; a < LEVELS; a++) {
        real mean = 0;
        for (int c = a; c < LEVELS; c++)
            mean += L[AT(c, a)] * x[c];
        record[a] = mean;
        for (int b = 0; b <= a; b++) {
            real variance = 0;
            for (int c = a; c < LEVELS; c++)
                variance += L[AT(c, a)] * L[AT(c, b)];
            record[LEVELS + AT(a, b)] = variance;
        }
    }
}

#define BELOW(mask, i) POPCOUNT((mask) & ((1u << (i)) - 1)) /* the number of candidate i among those that are on */

KERNEL void spike_slab(int N, GLOBAL real *RESTRICT b, GLOBAL const real *RESTRICT gram,
                       GLOBAL const real *RESTRICT norms, GLOBAL const real *RESTRICT latents,
                       GLOBAL const int *RESTRICT candidates, real beta, GLOBAL real *RESTRICT mean,
                       GLOBAL real *RESTRICT log_evidence, GLOBAL real *RESTRICT square, GLOBAL real *RESTRICT pairs,
                       GLOBAL real *RESTRICT full SPILL_ARGUMENTS)
{
    LOCAL acc scratch[GROUP];
    STATE_ROOM(state, TILE, ROW, STATES); /* energies, then weights */
    LOCAL real tile_coupling[TILE][HPRIME * (HPRIME + 1) / 2], tile_field[TILE][HPRIME];
    LOCAL real tile_record[TILE][CHUNK * RECORD];
    LOCAL_PTR real *coupling = tile_coupling[ROW]; /* A, of i <= j, at AT(j, i) */
    LOCAL_PTR real *field = tile_field[ROW], *record = tile_record[ROW];
    GLOBAL const real *pull = latents, *offset = latents + H, *spread = latents + 2 * H, *shift = latents + 3 * H;

    size_t n = (size_t)GROUP_ID * TILE + ROW;
    do {
        /* A lane without a data point has nothing to count, but it meets every barrier. */
        const int alive = n < (size_t)N, latents_of = alive ? H : 0;
        GLOBAL real *row = b + n * H, *energy = mean + n * H;
        GLOBAL const real *norm = norms + (MASKED ? n * H : 0);
        GLOBAL const int *chosen = candidates + n * HPRIME;

        for (int j = LANE; j < HPRIME && alive; j += LANES) {
            field[j] = row[chosen[j]] + pull[chosen[j]];
            coupling[AT(j, j)] = 1 + norm[chosen[j]];
            for (int i = 0; i < j; i++)
                coupling[AT(j, i)] = gram[MASKED ? n * PAIRS + PAIR(i, j) : (size_t)chosen[i] * H + chosen[j]];
        }
        BARRIER();

        /* Energies and the peaks. */
        real top = 0, top1 = 0, most = -REAL_INF; /* the largest E of LEVELS candidates, if these are several */
        for (int h = LANE; h < latents_of; h += LANES) {
            top = REAL_MAX(ANNEALED(energy[h], shift[h]), top);
            top1 = REAL_MAX(energy[h], top1);
        }
        for (int s = MANY + LANE; s < STATES && alive; s += LANES) {
            real L[TRIANGLE], root[LEVELS], x[LEVELS];
            real E = factorise(STATE_MASK[s], coupling, field, L, root, x), shifts = 0;
            for (unsigned int mask = STATE_MASK[s]; mask != 0; mask &= mask - 1) {
                E += offset[chosen[LOWEST_BIT(mask)]];
                if (ANNEAL)
                    shifts += shift[chosen[LOWEST_BIT(mask)]];
            }
            state[s] = E;
            top = REAL_MAX(ANNEALED(E, shifts), top);
            top1 = REAL_MAX(E, top1);
            if (s >= STATE_LEVEL[LEVELS])
                most = REAL_MAX(E, most);
        }
        const real peak = lanes_max(top, scratch), peak1 = ANNEAL ? lanes_max(top1, scratch) : peak;
        const real most1 = LEVELS > 1 ? lanes_max(most, scratch) : 0;

        /* Weights, in place. */
        acc sum = 0, sum1 = 0;
        for (int h = LANE; h < latents_of; h += LANES) {
            const real E = energy[h];
            energy[h] = REAL_EXP(ANNEALED(E, shift[h]) - peak);
            sum += energy[h];
            if (ANNEAL)
                sum1 += REAL_EXP(E - peak1);
        }
        for (int s = MANY + LANE; s < STATES && alive; s += LANES) {
            const real E = state[s];
            real shifts = 0;
            if (ANNEAL)
                for (unsigned int mask = STATE_MASK[s]; mask != 0; mask &= mask - 1)
                    shifts += shift[chosen[LOWEST_BIT(mask)]];
            state[s] = REAL_EXP(ANNEALED(E, shifts) - peak);
            sum += state[s];
            if (ANNEAL)
                sum1 += REAL_EXP(E - peak1);
        }
        const real z = (real)(lanes_sum(sum, scratch) + REAL_EXP(-peak));
        const real z1 = ANNEAL ? (real)(lanes_sum(sum1, scratch) + REAL_EXP(-peak1)) : z;
        const real scale = 1 / z;
        if (alive && LANE == 0) {
            log_evidence[n] = peak1 + REAL_LOG(z1);
            full[n] = (real)(LEVELS > 1 ? most1 >= peak1 : peak1 > 0);
        }

        /* The singletons' part of the moments. */
        for (int h = LANE; h < latents_of; h += LANES) {
            const real variance = 1 / (1 + norm[h]), u = variance * (row[h] + pull[h]), q = scale * energy[h];
            energy[h] = q;
            row[h] = q * u * spread[h];
            square[n * H + h] = q * (variance + (u - pull[h]) * (u - pull[h]));
        }
        for (int p = LANE; p < PAIRS && alive; p += LANES)
            pairs[n * PAIRS + p] = 0;
        BARRIER();

        /* The others': a lane owns the sums of some pairs i <= j. */
        for (int first = MANY; first < STATES; first += CHUNK) {
            const int end = first + CHUNK < STATES ? first + CHUNK : STATES;
            for (int s = first + LANE; s < end && alive; s += LANES)
                if (state[s] > 0)
                    strengths(STATE_MASK[s], coupling, field, record + (s - first) * RECORD);
            BARRIER();
            for (int p = LANE; p < PAIRS + HPRIME && alive; p += LANES) {
                int i = 0, before = 0;
                for (; before + HPRIME - i <= p; i++)
                    before += HPRIME - i;
                const int j = i + p - before, h = chosen[i];
                const unsigned int both = 1u << i | 1u << j;
                real weight = 0, product = 0, second = 0;
                for (int s = first; s < end; s++) {
                    const unsigned int mask = STATE_MASK[s];
                    if ((mask & both) != both || !(state[s] > 0))
                        continue;
                    LOCAL_PTR const real *u = record + (s - first) * RECORD;
                    const int at_i = BELOW(mask, i), at_j = BELOW(mask, j);
                    const real about = i < j ? 0 : pull[h];
                    weight += state[s];
                    product += state[s] * u[at_i];
                    second += state[s] * (u[LEVELS + AT(at_j, at_i)] + (u[at_i] - about) * (u[at_j] - about));
                }
                if (i < j) {
                    pairs[n * PAIRS + PAIR(i, j)] += scale * second;
                } else {
                    energy[h] += scale * weight;
                    row[h] += scale * product * spread[h];
                    square[n * H + h] += scale * second;
                }
            }
            BARRIER();
        }
    } while (SPILLED && (n += GROUPS) < (size_t)N);
}
#endif
