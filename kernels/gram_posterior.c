/* gram_posterior.c: the truncated posterior of discrete latents whose log-joint is quadratic (BSC, TSC, DSC).
 *
 *   E(s) = sum_i (s_i slope_i b_i + offset_i(s_i)) - sum_{i<j} s_i s_j gram_ij   over the active latents of s; E(0) = 0
 *   K_n  = {0}, the singletons, the states of 2 ... GAMMA active latents, all of them candidates; a latent that is
 *          active has one of VALUES values
 *   q(s) ~ exp(beta E(s) + sum_i shift(s_i)) over K_n
 *
 *   b (N, H)              in: the products W'y; out: <s>
 *   gram                  (H, H), of all data points; if MASKED, (N, PAIRS), of each one's candidates
 *   norms (N, H)          if MASKED, gram_hh of each data point: s_h^2 norms_h / 2 is taken off E(s)
 *   offset (VALUES, H), values (VALUES), shift (VALUES)
 *   log_evidence (N,)     log sum over K_n of exp E(s), unannealed
 *   pairs (N, PAIRS)      <s_i s_j>, i < j positions among the candidates, row after row
 *   squares (N, H)        <s_h^2>, and
 *   counts (N, VALUES)    the mean number of latents with that value, both if VALUES > 1: else <s> says it all
 *   full (N,)             1 where GAMMA latents are active in the state of the largest E, else 0
 *
 * A state is its parent, a prefix, and one later candidate, so its energy takes one more term for each latent.
 * Nothing of size |K_n| leaves the work-group.
 *
 * Groups: ceil(N / TILE); any number, if SPILLED. Sizes: H, HPRIME, GAMMA, VALUES, MASKED; ANNEAL 0 promises beta = 1 and shift = 0.
 */
#define PAIRS (HPRIME * (HPRIME - 1) / 2)
#define PAIR(i, j) ((i) * (2 * HPRIME - (i) - 1) / 2 + (j) - (i) - 1) /* the number of the pair i < j */
#define LEVELS (GAMMA < HPRIME ? GAMMA : HPRIME) /* the most latents a state of several candidates has on */

/* The exponent of q for a state of energy E, whose values shift it by `by`. */
#if ANNEAL
#define ANNEALED(E, by) (beta * (E) + (by))
#else
#define ANNEALED(E, by) (E)
#endif

/* A single value is the unit of s, in which all is counted until the end: then VALUE is 1, and costs nothing. */
#if VALUES > 1
#define UNIT ((real)1)
#define VALUE(v) values[v]
#else
#define UNIT values[0]
#define VALUE(v) ((real)1)
#endif

/* The coupling of two candidates, positions i < j, of data point n. */
#if MASKED
#define COUPLING(n, i, j) (UNIT * UNIT * gram[(n) * PAIRS + PAIR(i, j)])
#else
#define COUPLING(n, i, j) (UNIT * UNIT * gram[(size_t)chosen[i] * H + chosen[j]])
#endif

#if WIDTH > 1
/* ------------------------------------------------------------------------- CPU devices: vectors of lanes
 * First the singletons, one data point after the other, with a latent in each element of a vector; then the
 * states of several candidates, with a data point in each element (TILE is WIDTH). */

#define CHUNKS ((H + WIDTH - 1) / WIDTH)

/* What the states of two and more candidates add up to; weights are relative to the peaks. */
typedef struct {
    lanes peak, weight;           /* the largest exponent of q, or 0, and the weight of all states */
    lanes peak1, weight1;         /* the same at beta = 1, for the evidence */
    lanes most;                   /* the largest E of LEVELS candidates, if these are several */
    lanes single[HPRIME][VALUES]; /* the weight of the states with candidate i at a value, */
    lanes pair[PAIRS + 1];        /* and <s_i s_j>, unnormalised (+ 1: an array cannot be empty) */
} superpositions;

/* Walk through all prefixes, depth first, twice: for the peaks, and for the weights. On level d the prefix has d
 * candidates on, the last of them is last[d] at value number at[d], and it leads to states that have more on, all of
 * them k > last[d]. Each state is weighed once, as its parent's; what a prefix leads to is folded back into its own
 * parent. */
DEVICE void superpose(const lanes unary[HPRIME][VALUES], const lanes *gram, const real *values, real beta,
                      const real *shift, superpositions *out)
{
    int last[LEVELS], at[LEVELS];
    vec energy[LEVELS];                /* of the prefix */
    real moved[LEVELS];                /* its shift */
    vec field[LEVELS][HPRIME][VALUES]; /* what k adds to it at a value */
    vec below[LEVELS];                 /* the weight of all states it leads to */
    vec with[LEVELS][HPRIME][VALUES];  /* and of those with k at a value */

    energy[0] = below[0] = out->peak.v = out->peak1.v = out->weight1.v = (vec)(0);
    out->most.v = (vec)(-REAL_INF);
    moved[0] = 0;
    for (int k = 0; k < HPRIME; k++)
        for (int v = 0; v < VALUES; v++) {
            field[0][k][v] = unary[k][v].v;
            with[0][k][v] = (vec)(0);
        }
    for (int p = 0; p < PAIRS; p++)
        out->pair[p].v = (vec)(0);

    for (int pass = 0; pass < 2; pass++) {
        int d = LEVELS > 1;
        last[d] = at[d] = 0;
        while (d > 0) {
            const int j = last[d];
            const real mine = VALUE(at[d]);
            energy[d] = energy[d - 1] + field[d - 1][j][at[d]];
            if (ANNEAL)
                moved[d] = moved[d - 1] + shift[at[d]];
            below[d] = (vec)(0);
            for (int k = j + 1; k < HPRIME; k++) {
                const vec pull = mine * gram[PAIR(j, k)].v;
                for (int v = 0; v < VALUES; v++) {
                    field[d][k][v] = field[d - 1][k][v] - VALUE(v) * pull;
                    const vec E = energy[d] + field[d][k][v];
                    if (pass == 0) {
                        out->peak.v = VMAX(ANNEALED(E, moved[d] + shift[v]), out->peak.v);
                        out->peak1.v = VMAX(E, out->peak1.v);
                        if (d + 1 == LEVELS)
                            out->most.v = VMAX(E, out->most.v);
                    } else {
                        with[d][k][v] = vexp(ANNEALED(E, moved[d] + shift[v]) - out->peak.v);
                        below[d] += with[d][k][v];
                        if (ANNEAL)
                            out->weight1.v += vexp(E - out->peak1.v);
                    }
                }
            }
            if (d + 1 < LEVELS && j + 2 < HPRIME) {
                last[++d] = j + 1;
                at[d] = 0;
                continue;
            }
            int finished; /* all values and places of the last candidate have been */
            do { /* this prefix is: fold its weights back into its parent */
                if (pass == 1) {
                    const real own = VALUE(at[d]);
                    for (int k = last[d] + 1; k < HPRIME; k++) {
                        vec mean = (vec)(0);
                        for (int v = 0; v < VALUES; v++) {
                            mean += VALUE(v) * with[d][k][v];
                            with[d - 1][k][v] += with[d][k][v];
                        }
                        out->pair[PAIR(last[d], k)].v += own * mean;
                    }
                    with[d - 1][last[d]][at[d]] += below[d];
                    below[d - 1] += below[d];
                }
                if (++at[d] == VALUES) {
                    at[d] = 0;
                    last[d]++;
                }
                finished = last[d] == HPRIME - 1;
            } while (finished && --d > 0);
        }
    }
    for (int k = 0; k < HPRIME; k++)
        for (int v = 0; v < VALUES; v++)
            out->single[k][v].v = with[0][k][v];
    out->weight.v = below[0];
    if (!ANNEAL) {
        out->peak1 = out->peak;
        out->weight1 = out->weight;
    }
}

typedef union {
    vec v[CHUNKS];
    real at[CHUNKS * WIDTH];
} chunks;

typedef struct { /* as in superpositions, of one data point */
    real peak, peak1, weight1, weight[VALUES];
} singletons;

/* The energies of a data point's singletons; what their weights add to <s> replaces its row of b, <s^2> the row of
 * squares. `after`: numbers of the tile that follow the row. */
DEVICE singletons weigh_singletons(GLOBAL real *row, int after, GLOBAL const real *norms, GLOBAL real *squares,
                                   const chunks *slopes, const chunks *offsets, const real *values, real beta,
                                   const real *shift, chunks *energy)
{
    singletons one;
    vec top = (vec)(0), top1 = (vec)(0), sum1 = (vec)(0), sum[VALUES];
    for (int c = 0; c < CHUNKS; c++) {
        const int h = c * WIDTH;
        const vec x = vload_row(H - h, 0, row + h, after);
        for (int v = 0; v < VALUES; v++) {
            vec E = slopes[v].v[c] * x + offsets[v].v[c];
            if (MASKED)
                E -= UNIT * VALUE(v) * UNIT * VALUE(v) / 2 * vload_row(H - h, 0, norms + h, after);
            energy[v].v[c] = E;
            top = VMAX(ANNEALED(E, shift[v]), top);
            top1 = VMAX(E, top1);
        }
    }
    one.peak = highest(top);
    one.peak1 = ANNEAL ? highest(top1) : one.peak;
    for (int v = 0; v < VALUES; v++)
        sum[v] = (vec)(0);
    for (int c = 0; c < CHUNKS; c++) {
        const int h = c * WIDTH;
        vec first = (vec)(0), second = (vec)(0);
        for (int v = 0; v < VALUES; v++) {
            const vec E = ANNEALED(energy[v].v[c], shift[v]) - one.peak;
            if (SOMEWHERE(E > FAINT_ENERGY)) {
                const vec weight = vexp(E);
                sum[v] += weight;
                first += VALUE(v) * weight;
                second += VALUE(v) * VALUE(v) * weight;
            }
            if (ANNEAL)
                sum1 += vexp(energy[v].v[c] - one.peak1);
        }
        vstore_row(first, H - h, row + h, after);
        if (VALUES > 1)
            vstore_row(second, H - h, squares + h, after);
    }
    for (int v = 0; v < VALUES; v++)
        one.weight[v] = (real)total(VACC(sum[v]));
    if (ANNEAL)
        one.weight1 = (real)total(VACC(sum1));
    return one;
}

KERNEL void gram_posterior(int N, GLOBAL real *RESTRICT b, GLOBAL const real *RESTRICT gram,
                           GLOBAL const real *RESTRICT norms, GLOBAL const real *RESTRICT slope,
                           GLOBAL const real *RESTRICT offset, GLOBAL const real *RESTRICT all_values,
                           GLOBAL const int *RESTRICT candidates, real beta, GLOBAL const real *RESTRICT all_shifts,
                           GLOBAL real *RESTRICT log_evidence, GLOBAL real *RESTRICT pairs,
                           GLOBAL real *RESTRICT squares, GLOBAL real *RESTRICT counts, GLOBAL real *RESTRICT full)
{
    const int start = GROUP_ID * WIDTH;
    const int count = N - start < WIDTH ? N - start : WIDTH;

    real values[VALUES], shift[VALUES], faint = 0; /* what counts as 0 of <s> */
    chunks slopes[VALUES], offsets[VALUES]; /* filled up to whole vectors with energies of -inf */
    for (int v = 0; v < VALUES; v++) {
        values[v] = all_values[v];
        shift[v] = all_shifts[v];
        faint = REAL_MAX(faint, REAL_FAINT * fabs(values[v]));
        for (int c = 0; c < CHUNKS; c++) {
            const int h = c * WIDTH;
            slopes[v].v[c] = values[v] * vload_row(H - h, 0, slope + h, 0);
            offsets[v].v[c] = vload_row(H - h, -REAL_INF, offset + v * H + h, 0);
        }
    }

    lanes unary[HPRIME][VALUES], coupling[PAIRS + 1]; /* of the candidates; 0 where there is no data point */
    lanes peak, peak1, weight1, weight[VALUES];
    peak.v = peak1.v = weight1.v = (vec)(0);
    for (int v = 0; v < VALUES; v++)
        weight[v].v = (vec)(0);
    for (int i = 0; i < HPRIME; i++)
        for (int v = 0; v < VALUES; v++)
            unary[i][v].v = (vec)(0);
    for (int p = 0; p < PAIRS; p++)
        coupling[p].v = (vec)(0);
    for (int r = 0; r < count; r++) {
        const size_t n = start + r, row = n * H;
        GLOBAL const int *chosen = candidates + n * HPRIME;
        chunks energy[VALUES];
        const singletons one = weigh_singletons(b + row, (count - 1 - r) * H, MASKED ? norms + row : norms,
                                                VALUES > 1 ? squares + row : squares, slopes, offsets, values, beta,
                                                shift, energy);
        peak.at[r] = one.peak;
        peak1.at[r] = one.peak1;
        if (ANNEAL)
            weight1.at[r] = one.weight1;
        for (int v = 0; v < VALUES; v++)
            weight[v].at[r] = one.weight[v];
        for (int i = 0; i < HPRIME; i++) {
            for (int v = 0; v < VALUES; v++)
                unary[i][v].at[r] = energy[v].at[chosen[i]];
            for (int j = i + 1; j < HPRIME; j++)
                coupling[PAIR(i, j)].at[r] = COUPLING(n, i, j);
        }
    }

    superpositions many;
    superpose(unary, coupling, values, beta, shift, &many);

    /* All together: the zero state, the singletons, the others. */
    lanes evidence, scale, scale_many, highest1;
    vec all = (vec)(0);
    for (int v = 0; v < VALUES; v++)
        all += weight[v].v;
    const vec joint = VMAX(many.peak.v, peak.v), joint1 = VMAX(many.peak1.v, peak1.v);
    const vec rescale = vexp(peak.v - joint), rescale_many = vexp(many.peak.v - joint);
    const vec z = vexp(-joint) + rescale * all + rescale_many * many.weight.v;
    const vec z1 = vexp(-joint1) + vexp(peak1.v - joint1) * (ANNEAL ? weight1.v : all) +
                   vexp(many.peak1.v - joint1) * many.weight1.v;
    evidence.v = joint1 + log(z1);
    highest1.v = joint1;
    scale.v = rescale / z;
    scale_many.v = rescale_many / z;

    for (int r = 0; r < count; r++) {
        const size_t n = start + r;
        const int after = (count - 1 - r) * H; /* what follows in the tile is this group's own */
        GLOBAL const int *chosen = candidates + n * HPRIME;
        log_evidence[n] = evidence.at[r];
        full[n] = (real)(LEVELS > 1 ? many.most.at[r] >= highest1.at[r] : highest1.at[r] > 0);
        for (int c = 0; c < CHUNKS; c++) {
            const int h = c * WIDTH;
            GLOBAL real *p = b + n * H + h, *square = squares + (VALUES > 1 ? n * H + h : 0);
            const vec mean = UNIT * scale.at[r] * vload_row(H - h, 0, p, after);
            vstore_row(fabs(mean) < faint ? (vec)(0) : mean, H - h, p, after);
            if (VALUES > 1)
                vstore_row(scale.at[r] * vload_row(H - h, 0, square, after), H - h, square, after);
        }
        for (int p = 0; p < PAIRS; p++)
            pairs[n * PAIRS + p] = UNIT * UNIT * many.pair[p].at[r] * scale_many.at[r];
        for (int i = 0; i < HPRIME; i++) {
            real mean = b[n * H + chosen[i]];
            for (int v = 0; v < VALUES; v++)
                mean += UNIT * VALUE(v) * many.single[i][v].at[r] * scale_many.at[r];
            b[n * H + chosen[i]] = fabs(mean) < faint ? 0 : mean;
        }
        for (int v = 0; v < (VALUES > 1 ? VALUES : 0); v++) {
            real sum = 0;
            for (int i = 0; i < HPRIME; i++) {
                const real mean = many.single[i][v].at[r] * scale_many.at[r];
                squares[n * H + chosen[i]] += VALUE(v) * VALUE(v) * mean;
                sum += mean;
            }
            counts[n * VALUES + v] = weight[v].at[r] * scale.at[r] + sum;
        }
    }
}

#else
/* --------------------------------------------------------------------- GPUs: work-items of a tile are lanes
 * A lane takes every LANES-th state, latent or pair. The active sets of the candidates are a table, ordered by size:
 *   STATES, STATE_MASK[s]      bit i: candidate i is on
 *   STATE_PARENT[s]            the number of the set without its highest bit
 *   STATE_LEVEL[g]             the number of the first set with g latents on; STATE_LEVEL[0] = 0, the zero state
 *   STATES_OF(V)               how many states there are if every active latent has one of V values
 *
 * A state is a set and a choice, the number whose digits to the base VALUES are the numbers of its latents' values,
 * the highest candidate's the last. States are kept in the order of the sets, the choices of each together; so the
 * parent of (s, choice) is (STATE_PARENT[s], choice / VALUES). */

/* The states of `active` latents: how many choices a set has, where the first lies, how many there are. */
DEVICE int choices_of(int active)
{
    int choices = 1;
    for (int g = 0; g < active; g++)
        choices *= VALUES;
    return choices;
}

DEVICE int states_of(int active)
{
    return (STATE_LEVEL[active + 1] - STATE_LEVEL[active]) * choices_of(active);
}

DEVICE int first_of(int active)
{
    int first = 0;
    for (int g = 0; g < active; g++)
        first += states_of(g);
    return first;
}

/* The number of the value that candidate i has, one of those on. */
DEVICE int digit(unsigned int mask, int choice, int i)
{
    for (unsigned int above = mask >> i >> 1; above != 0; above &= above - 1)
        choice /= VALUES;
    return choice % VALUES;
}

/* The energy of a state, from those of its parent and of its last candidate alone. */
DEVICE real grow(unsigned int mask, int choice, real parent, STATE_PTR const real *state,
                 LOCAL_PTR const real *coupling, GLOBAL const real *values)
{
    const int j = HIGHEST_BIT(mask), last = choice % VALUES;
    real pull = 0;
    for (unsigned int others = mask ^ 1u << j; others != 0;) {
        const int i = HIGHEST_BIT(others);
        others ^= 1u << i;
        choice /= VALUES;
        pull += VALUE(choice % VALUES) * coupling[j * (j - 1) / 2 + i];
    }
    return parent + state[1 + j * VALUES + last] - VALUE(last) * pull;
}

/* The shift of a state of `active` latents. */
DEVICE real shifted(int active, int choice, GLOBAL const real *shift)
{
    real sum = 0;
    for (int g = 0; g < active; g++, choice /= VALUES)
        sum += shift[choice % VALUES];
    return sum;
}

/* sum w s_i and sum w s_i s_j over the weights w of the states of several candidates that have i and j on. */
typedef struct {
    real first, second;
} moments;

DEVICE moments moments_of(int i, int j, TABLE_PTR const unsigned int *masks, STATE_PTR const real *state,
                          GLOBAL const real *values)
{
    const unsigned int both = 1u << i | 1u << j;
    moments m = {0, 0};
    for (int active = 2; active <= LEVELS; active++) {
        const int choices = choices_of(active);
        STATE_PTR const real *weight = state + first_of(active);
        for (int s = STATE_LEVEL[active]; s < STATE_LEVEL[active + 1]; s++, weight += choices) {
            const unsigned int mask = masks[s];
            for (int choice = 0; choice < choices && (mask & both) == both; choice++) {
                const real first = weight[choice] * VALUE(digit(mask, choice, i));
                m.first += first;
                m.second += first * VALUE(digit(mask, choice, j));
            }
        }
    }
    return m;
}

/* The energy of latent h alone at value number v, where its product with y is x. */
#if MASKED
#define ALONE(h, v, x) (UNIT * VALUE(v) * (slope[h] * (x) - UNIT * VALUE(v) / 2 * norms[n * H + (h)]) + offset[(v) * H + (h)])
#else
#define ALONE(h, v, x) (UNIT * VALUE(v) * slope[h] * (x) + offset[(v) * H + (h)])
#endif

KERNEL void gram_posterior(int N, GLOBAL real *RESTRICT b, GLOBAL const real *RESTRICT gram,
                           GLOBAL const real *RESTRICT norms, GLOBAL const real *RESTRICT slope,
                           GLOBAL const real *RESTRICT offset, GLOBAL const real *RESTRICT values,
                           GLOBAL const int *RESTRICT candidates, real beta, GLOBAL const real *RESTRICT shift,
                           GLOBAL real *RESTRICT log_evidence, GLOBAL real *RESTRICT pairs,
                           GLOBAL real *RESTRICT squares, GLOBAL real *RESTRICT counts, GLOBAL real *RESTRICT full
                           SPILL_ARGUMENTS)
{
    LOCAL acc scratch[GROUP];
    STATE_ROOM(state, TILE, ROW, STATES_OF(VALUES)); /* energies, then weights */
    LOCAL real tile_coupling[TILE][PAIRS + 1];
    LOCAL_PTR real *coupling = tile_coupling[ROW]; /* of i < j, at j (j - 1) / 2 + i */

    size_t n = (size_t)GROUP_ID * TILE + ROW;
    do {
        /* A lane without a data point has nothing to count, but it meets every barrier. */
        const int alive = n < (size_t)N, latents = alive ? H : 0;
        GLOBAL real *row = b + n * H;
        GLOBAL const int *chosen = candidates + n * HPRIME;

        for (int j = LANE; j < HPRIME && alive; j += LANES) {
            for (int v = 0; v < VALUES; v++)
                state[1 + j * VALUES + v] = ALONE(chosen[j], v, row[chosen[j]]);
            for (int i = 0; i < j; i++)
                coupling[j * (j - 1) / 2 + i] = COUPLING(n, i, j);
        }
        BARRIER();

        /* Energies, level by level, and the peaks. */
        real top = 0, top1 = 0, most = -REAL_INF; /* the largest E of LEVELS candidates, if these are several */
        for (int h = LANE; h < latents; h += LANES)
            for (int v = 0; v < VALUES; v++) {
                const real E = ALONE(h, v, row[h]);
                top = REAL_MAX(ANNEALED(E, shift[v]), top);
                top1 = REAL_MAX(E, top1);
            }
        for (int active = 2; active <= LEVELS; active++) {
            const int first = first_of(active), choices = choices_of(active), sets = STATE_LEVEL[active];
            for (int t = LANE; t < states_of(active) && alive; t += LANES) {
                const int s = sets + t / choices, choice = t % choices;
                const int parent = first_of(active - 1) +
                                   (STATE_PARENT[s] - STATE_LEVEL[active - 1]) * (choices / VALUES) + choice / VALUES;
                const real E = state[first + t] = grow(STATE_MASK[s], choice, state[parent], state, coupling, values);
                top = REAL_MAX(ANNEALED(E, shifted(active, choice, shift)), top);
                top1 = REAL_MAX(E, top1);
                if (active == LEVELS)
                    most = REAL_MAX(E, most);
            }
            BARRIER();
        }
        const real peak = lanes_max(top, scratch), peak1 = ANNEAL ? lanes_max(top1, scratch) : peak;
        const real most1 = LEVELS > 1 ? lanes_max(most, scratch) : 0;

        /* Weights: of the singletons, as they add to <s>, into the row of b, of the others in place. */
        acc sum = 0, sum1 = 0, count[VALUES];
        for (int v = 0; v < VALUES; v++)
            count[v] = 0;
        for (int h = LANE; h < latents; h += LANES) {
            const real x = row[h];
            real mean = 0, square = 0;
            for (int v = 0; v < VALUES; v++) {
                const real E = ALONE(h, v, x), weight = REAL_EXP(ANNEALED(E, shift[v]) - peak);
                sum += weight;
                count[v] += weight;
                mean += VALUE(v) * weight;
                square += VALUE(v) * VALUE(v) * weight;
                if (ANNEAL)
                    sum1 += REAL_EXP(E - peak1);
            }
            row[h] = mean;
            if (VALUES > 1)
                squares[n * H + h] = square;
        }
        for (int active = 2; active <= LEVELS; active++) {
            const int first = first_of(active), choices = choices_of(active);
            for (int t = LANE; t < states_of(active) && alive; t += LANES) {
                const real E = state[first + t];
                int choice = t % choices;
                const real weight = REAL_EXP(ANNEALED(E, shifted(active, choice, shift)) - peak);
                state[first + t] = weight;
                sum += weight;
                if (ANNEAL)
                    sum1 += REAL_EXP(E - peak1);
                for (int g = 0; g < active && VALUES > 1; g++, choice /= VALUES)
                    for (int v = 0; v < VALUES; v++)
                        count[v] += choice % VALUES == v ? weight : 0;
            }
        }
        const real z = (real)(lanes_sum(sum, scratch) + REAL_EXP(-peak));
        const real z1 = ANNEAL ? (real)(lanes_sum(sum1, scratch) + REAL_EXP(-peak1)) : z;
        const real scale = 1 / z;
        if (alive && LANE == 0) {
            log_evidence[n] = peak1 + REAL_LOG(z1);
            full[n] = (real)(LEVELS > 1 ? most1 >= peak1 : peak1 > 0);
        }
        for (int v = 0; v < VALUES && VALUES > 1; v++) {
            const acc all = lanes_sum(count[v], scratch);
            if (alive && LANE == 0)
                counts[n * VALUES + v] = scale * (real)all;
        }
        for (int h = LANE; h < latents; h += LANES) {
            row[h] *= UNIT * scale;
            if (VALUES > 1)
                squares[n * H + h] *= scale;
        }
        BARRIER();

        /* <s_i s_j> of the pairs i < j, and as i = j what the states of several candidates add to <s_i> and <s_i^2>. */
        for (int p = LANE; p < PAIRS + HPRIME && alive; p += LANES) {
            int i = 0, first = 0;
            for (; first + HPRIME - i <= p; i++)
                first += HPRIME - i;
            const int j = i + p - first;
            const moments m = moments_of(i, j, STATE_MASK, state, values);
            if (i < j)
                pairs[n * PAIRS + PAIR(i, j)] = UNIT * UNIT * scale * m.second;
            else {
                row[chosen[i]] += UNIT * scale * m.first;
                if (VALUES > 1)
                    squares[n * H + chosen[i]] += scale * m.second;
            }
        }
        /* No barrier: what the next data point writes before its first one, no lane reads here. */
    } while (SPILLED && (n += GROUPS) < (size_t)N);
}
#endif
