/* gram_posterior.c: the truncated posterior of binary latents whose log-joint is quadratic (BSC).
 *
 *   E(s) = sum_i (slope_i b_i + offset_i) - sum_{i<j} gram_ij       over the active latents of s; E(0) = 0
 *   K_n  = {0}, the H singletons, the states of 2 ... GAMMA active latents, all of them candidates
 *   q(s) ~ exp(beta E(s) + shift |s|) over K_n
 *
 *   b (N, H)              in: the products W'y; out: <s>
 *   log_evidence (N,)     log sum over K_n of exp E(s), unannealed
 *   pairs (N, PAIRS)      <s_i s_j>, i < j positions among the candidates, row after row
 *
 * A state is its parent, a prefix, and one later candidate, so its energy takes one more term for each latent.
 * Nothing of size |K_n| leaves the work-group.
 *
 * Groups: ceil(N / TILE). Sizes: H, HPRIME, GAMMA; ANNEAL 0 promises beta = 1 and shift = 0.
 */
#define PAIRS (HPRIME * (HPRIME - 1) / 2)
#define PAIR(i, j) ((i) * (2 * HPRIME - (i) - 1) / 2 + (j) - (i) - 1) /* the number of the pair i < j */

/* The exponent of q for a state of energy E with `active` latents. */
#if ANNEAL
#define ANNEALED(E, active) (beta * (E) + shift * (real)(active))
#else
#define ANNEALED(E, active) (E)
#endif
#define LEVELS (GAMMA < HPRIME ? GAMMA : HPRIME) /* the most latents a state of several candidates has on */

#if WIDTH > 1
/* ------------------------------------------------------------------------- CPU devices: vectors of lanes
 * First the singletons, one data point after the other, with a latent in each element of a vector; then the
 * states of several candidates, with a data point in each element (TILE is WIDTH). */

#define CHUNKS ((H + WIDTH - 1) / WIDTH)

/* What the states of two and more candidates add up to; weights are relative to the peaks. */
typedef struct {
    lanes peak, weight;    /* the largest exponent of q, or 0, and the weight of all states */
    lanes peak1, weight1;  /* the same at beta = 1, for the evidence */
    lanes single[HPRIME];  /* the weight of the states with candidate i, */
    lanes pair[PAIRS + 1]; /* and of those with candidates i and j (+ 1: an array cannot be empty) */
} superpositions;

/* Walk through all prefixes, depth first, twice: for the peaks, and for the weights. On level d the prefix has d
 * candidates on, the last of them is last[d], and it leads to states that have more on, all of them k > last[d].
 * Each state is weighed once, as its parent's; what a prefix leads to is folded back into its own parent. */
DEVICE void superpose(const lanes *unary, const lanes *gram, real beta, real shift, superpositions *out)
{
    int last[LEVELS];
    vec energy[LEVELS];        /* of the prefix */
    vec field[LEVELS][HPRIME]; /* what k adds to it */
    vec below[LEVELS];         /* the weight of all states it leads to */
    vec with[LEVELS][HPRIME];  /* and of those with k on */

    energy[0] = below[0] = out->peak.v = out->peak1.v = out->weight1.v = (vec)(0);
    for (int k = 0; k < HPRIME; k++) {
        field[0][k] = unary[k].v;
        with[0][k] = (vec)(0);
    }
    for (int p = 0; p < PAIRS; p++)
        out->pair[p].v = (vec)(0);

    for (int pass = 0; pass < 2; pass++) {
        int d = LEVELS > 1;
        last[d] = 0;
        while (d > 0) {
            const int j = last[d];
            energy[d] = energy[d - 1] + field[d - 1][j];
            below[d] = (vec)(0);
            for (int k = j + 1; k < HPRIME; k++) {
                field[d][k] = field[d - 1][k] - gram[PAIR(j, k)].v;
                const vec E = energy[d] + field[d][k];
                if (pass == 0) {
                    out->peak.v = VMAX(ANNEALED(E, d + 1), out->peak.v);
                    out->peak1.v = VMAX(E, out->peak1.v);
                } else {
                    with[d][k] = vexp(ANNEALED(E, d + 1) - out->peak.v);
                    below[d] += with[d][k];
                    if (ANNEAL)
                        out->weight1.v += vexp(E - out->peak1.v);
                }
            }
            if (d + 1 < LEVELS && j + 2 < HPRIME) {
                last[++d] = j + 1;
                continue;
            }
            do { /* this prefix is finished: fold its weights back into its parent */
                if (pass == 1) {
                    for (int k = last[d] + 1; k < HPRIME; k++) {
                        out->pair[PAIR(last[d], k)].v += with[d][k];
                        with[d - 1][k] += with[d][k];
                    }
                    with[d - 1][last[d]] += below[d];
                    below[d - 1] += below[d];
                }
            } while (++last[d] == HPRIME - 1 && --d > 0);
        }
    }
    for (int k = 0; k < HPRIME; k++)
        out->single[k].v = with[0][k];
    out->weight.v = below[0];
    if (!ANNEAL) {
        out->peak1 = out->peak;
        out->weight1 = out->weight;
    }
}

typedef union {
    vec v[CHUNKS];
    real at[CHUNKS * WIDTH];
} energies;

typedef struct { /* as in superpositions, of one data point */
    real peak, peak1, weight, weight1;
} singletons;

/* The energies of a data point's singletons; their weights replace its row of b. */
DEVICE singletons weigh_singletons(GLOBAL real *row, const vec *slopes, const vec *offsets, real beta, real shift,
                                   energies *energy)
{
    singletons one;
    vec top = (vec)(0), top1 = (vec)(0), sum = (vec)(0), sum1 = (vec)(0);
    for (int c = 0; c < CHUNKS; c++) {
        const int h = c * WIDTH;
        const vec x = h + WIDTH <= H ? VLOAD(row + h) : vload_part(H % WIDTH, 0, row + h);
        energy->v[c] = slopes[c] * x + offsets[c];
        top = VMAX(ANNEALED(energy->v[c], 1), top);
        top1 = VMAX(energy->v[c], top1);
    }
    one.peak = highest(top);
    one.peak1 = ANNEAL ? highest(top1) : one.peak;
    for (int c = 0; c < CHUNKS; c++) {
        const int h = c * WIDTH;
        const vec weight = vexp(ANNEALED(energy->v[c], 1) - one.peak);
        sum += weight;
        if (ANNEAL)
            sum1 += vexp(energy->v[c] - one.peak1);
        if (h + WIDTH <= H)
            VSTORE(weight, row + h);
        else
            vstore_part(weight, H % WIDTH, row + h);
    }
    one.weight = (real)total(VACC(sum));
    one.weight1 = ANNEAL ? (real)total(VACC(sum1)) : one.weight;
    return one;
}

KERNEL void gram_posterior(int N, GLOBAL real *RESTRICT b, GLOBAL const real *RESTRICT gram,
                           GLOBAL const real *RESTRICT slope, GLOBAL const real *RESTRICT offset,
                           GLOBAL const int *RESTRICT candidates, real beta, real shift,
                           GLOBAL real *RESTRICT log_evidence, GLOBAL real *RESTRICT pairs)
{
    const int start = GROUP_ID * WIDTH;
    const int count = N - start < WIDTH ? N - start : WIDTH;

    vec slopes[CHUNKS], offsets[CHUNKS]; /* filled up to whole vectors with energies of -inf */
    for (int c = 0; c < CHUNKS; c++) {
        const int h = c * WIDTH, left = H - h < WIDTH ? H - h : WIDTH;
        slopes[c] = vload_part(left, 0, slope + h);
        offsets[c] = vload_part(left, -REAL_INF, offset + h);
    }

    lanes unary[HPRIME], coupling[PAIRS + 1]; /* energies of the candidates; 0 where there is no data point */
    lanes peak, peak1, weight, weight1;
    peak.v = peak1.v = weight.v = weight1.v = (vec)(0);
    for (int i = 0; i < HPRIME; i++)
        unary[i].v = (vec)(0);
    for (int p = 0; p < PAIRS; p++)
        coupling[p].v = (vec)(0);
    for (int r = 0; r < count; r++) {
        GLOBAL real *row = b + (size_t)(start + r) * H;
        GLOBAL const int *chosen = candidates + (size_t)(start + r) * HPRIME;
        energies energy;
        const singletons one = weigh_singletons(row, slopes, offsets, beta, shift, &energy);
        peak.at[r] = one.peak;
        peak1.at[r] = one.peak1;
        weight.at[r] = one.weight;
        weight1.at[r] = one.weight1;
        for (int i = 0; i < HPRIME; i++) {
            unary[i].at[r] = energy.at[chosen[i]];
            for (int j = i + 1; j < HPRIME; j++)
                coupling[PAIR(i, j)].at[r] = gram[(size_t)chosen[i] * H + chosen[j]];
        }
    }

    superpositions many;
    superpose(unary, coupling, beta, shift, &many);

    /* All together: the zero state, the singletons, the others. */
    lanes evidence, scale, scale_many;
    const vec joint = VMAX(many.peak.v, peak.v), joint1 = VMAX(many.peak1.v, peak1.v);
    const vec rescale = vexp(peak.v - joint), rescale_many = vexp(many.peak.v - joint);
    const vec z = vexp(-joint) + rescale * weight.v + rescale_many * many.weight.v;
    const vec z1 = vexp(-joint1) + vexp(peak1.v - joint1) * weight1.v + vexp(many.peak1.v - joint1) * many.weight1.v;
    evidence.v = joint1 + log(z1);
    scale.v = rescale / z;
    scale_many.v = rescale_many / z;

    for (int r = 0; r < count; r++) {
        const size_t n = start + r;
        log_evidence[n] = evidence.at[r];
        for (int h = 0; h < H; h++)
            b[n * H + h] *= scale.at[r];
        for (int i = 0; i < HPRIME; i++)
            b[n * H + candidates[n * HPRIME + i]] += many.single[i].at[r] * scale_many.at[r];
        for (int p = 0; p < PAIRS; p++)
            pairs[n * PAIRS + p] = many.pair[p].at[r] * scale_many.at[r];
    }
}

#else
/* --------------------------------------------------------------------- GPUs: work-items of a tile are lanes
 * A lane takes every LANES-th state, latent or pair. The states of the candidates are a table, ordered by size:
 *   STATES, STATE_MASK[s]      bit i: candidate i is on
 *   STATE_PARENT[s]            the number of the state without its highest bit
 *   STATE_LEVEL[g]             the number of the first state with g latents on; STATE_LEVEL[0] = 0, the zero state */

#define MANY STATE_LEVEL[2] /* the states before are the zero state and the candidates alone */

/* The energy of state s, from those of its parent and of its last candidate alone, both already in `state`. */
DEVICE real grow(int s, LOCAL_PTR const real *state, LOCAL_PTR const real *coupling)
{
    const unsigned int mask = STATE_MASK[s];
    const int j = HIGHEST_BIT(mask);
    real E = state[STATE_PARENT[s]] + state[1 + j];
    for (unsigned int others = mask ^ 1u << j; others != 0; others &= others - 1)
        E -= coupling[j * (j - 1) / 2 + LOWEST_BIT(others)];
    return E;
}

/* The weight of the states of several candidates that have both candidates on. */
DEVICE real weight_with(unsigned int both, LOCAL_PTR const real *state)
{
    real weight = 0;
    for (int s = MANY; s < STATES; s++)
        weight += (STATE_MASK[s] & both) == both ? state[s] : 0;
    return weight;
}

KERNEL void gram_posterior(int N, GLOBAL real *RESTRICT b, GLOBAL const real *RESTRICT gram,
                           GLOBAL const real *RESTRICT slope, GLOBAL const real *RESTRICT offset,
                           GLOBAL const int *RESTRICT candidates, real beta, real shift,
                           GLOBAL real *RESTRICT log_evidence, GLOBAL real *RESTRICT pairs)
{
    LOCAL acc scratch[GROUP];
    LOCAL real tile_state[TILE][STATES], tile_coupling[TILE][PAIRS + 1];
    LOCAL_PTR real *state = tile_state[ROW];       /* energies, then weights */
    LOCAL_PTR real *coupling = tile_coupling[ROW]; /* of i < j, at j (j - 1) / 2 + i */

    /* A lane without a data point has nothing to count, but it meets every barrier. */
    const size_t n = (size_t)GROUP_ID * TILE + ROW;
    const int alive = n < (size_t)N, latents = alive ? H : 0, states = alive ? STATES : 0;
    GLOBAL real *row = b + n * H;
    GLOBAL const int *chosen = candidates + n * HPRIME;

    for (int j = LANE; j < HPRIME && alive; j += LANES) {
        state[1 + j] = slope[chosen[j]] * row[chosen[j]] + offset[chosen[j]];
        for (int i = 0; i < j; i++)
            coupling[j * (j - 1) / 2 + i] = gram[(size_t)chosen[i] * H + chosen[j]];
    }
    BARRIER();

    /* Energies, level by level, and the peaks. */
    real top = 0, top1 = 0;
    for (int h = LANE; h < latents; h += LANES) {
        const real E = slope[h] * row[h] + offset[h];
        top = REAL_MAX(ANNEALED(E, 1), top);
        top1 = REAL_MAX(E, top1);
    }
    for (int active = 2; active <= LEVELS; active++) {
        for (int s = STATE_LEVEL[active] + LANE; s < STATE_LEVEL[active + 1] && alive; s += LANES) {
            const real E = state[s] = grow(s, state, coupling);
            top = REAL_MAX(ANNEALED(E, active), top);
            top1 = REAL_MAX(E, top1);
        }
        BARRIER();
    }
    const real peak = lanes_max(top, scratch), peak1 = ANNEAL ? lanes_max(top1, scratch) : peak;

    /* Weights: of the singletons into the row of b, of the others in place. */
    acc sum = 0, sum1 = 0;
    for (int h = LANE; h < latents; h += LANES) {
        const real E = slope[h] * row[h] + offset[h];
        row[h] = REAL_EXP(ANNEALED(E, 1) - peak);
        sum += row[h];
        if (ANNEAL)
            sum1 += REAL_EXP(E - peak1);
    }
    for (int s = MANY + LANE; s < states; s += LANES) {
        const real E = state[s];
        state[s] = REAL_EXP(ANNEALED(E, POPCOUNT(STATE_MASK[s])) - peak);
        sum += state[s];
        if (ANNEAL)
            sum1 += REAL_EXP(E - peak1);
    }
    const real z = (real)(lanes_sum(sum, scratch) + REAL_EXP(-peak));
    const real z1 = ANNEAL ? (real)(lanes_sum(sum1, scratch) + REAL_EXP(-peak1)) : z;
    const real scale = 1 / z;
    if (alive && LANE == 0)
        log_evidence[n] = peak1 + REAL_LOG(z1);
    for (int h = LANE; h < latents; h += LANES)
        row[h] *= scale;
    BARRIER();

    /* <s_i s_j> of the pairs i < j, and as i = j what the states of several candidates add to <s_i>. */
    for (int p = LANE; p < PAIRS + HPRIME && alive; p += LANES) {
        int i = 0, first = 0;
        for (; first + HPRIME - i <= p; i++)
            first += HPRIME - i;
        const int j = i + p - first;
        const real mean = scale * weight_with(1u << i | 1u << j, state);
        if (i < j)
            pairs[n * PAIRS + PAIR(i, j)] = mean;
        else
            row[chosen[i]] += mean;
    }
}
#endif
