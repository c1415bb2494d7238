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
 * First the states of several candidates, with a data point in each lane, which walks through their prefixes and keeps
 * none of the states; then the singletons, one data point after the other, with a latent in each lane.
 *
 * Groups: ceil(N / TILE). Sizes: H, HPRIME, GAMMA, VALUES, MASKED; ANNEAL 0 promises beta = 1 and shift = 0.
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

#define CHUNKS ((H + WIDTH - 1) / WIDTH)

/* What the states of two and more candidates add up to; weights are relative to the peaks. */
typedef struct {
    lanes peak, weight;           /* the largest exponent of q of any state, and the weight of these states */
    lanes peak1, weight1;         /* the same at beta = 1, for the evidence */
    lanes most;                   /* the largest E of LEVELS candidates, if these are several */
    lanes single[HPRIME][VALUES]; /* the weight of the states with candidate i at a value, */
    lanes pair[PAIRS + 1];        /* and <s_i s_j>, unnormalised (+ 1: an array cannot be empty) */
} superpositions;

/* Walk through all prefixes, depth first, twice: for the peaks, which begin with those of the other states, and for the
 * weights. On level d the prefix has d
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

    energy[0] = below[0] = out->weight1.v = (vec)(0);
    out->most.v = (vec)(-REAL_INF);
    moved[0] = 0;
    ROLLED for (int k = 0; k < HPRIME; k++)
        ROLLED for (int v = 0; v < VALUES; v++) {
            field[0][k][v] = unary[k][v].v;
            with[0][k][v] = (vec)(0);
        }
    ROLLED for (int p = 0; p < PAIRS; p++)
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
            ROLLED for (int k = j + 1; k < HPRIME; k++) {
                const vec pull = mine * gram[PAIR(j, k)].v;
                ROLLED for (int v = 0; v < VALUES; v++) {
                    field[d][k][v] = field[d - 1][k][v] - VALUE(v) * pull;
                    const vec E = energy[d] + field[d][k][v];
                    if (pass == 0) {
                        out->peak.v = VMAX(ANNEALED(E, moved[d] + shift[v]), out->peak.v);
                        if (ANNEAL)
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
                    ROLLED for (int k = last[d] + 1; k < HPRIME; k++) {
                        vec mean = (vec)(0);
                        ROLLED for (int v = 0; v < VALUES; v++) {
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
    ROLLED for (int k = 0; k < HPRIME; k++)
        ROLLED for (int v = 0; v < VALUES; v++)
            out->single[k][v].v = with[0][k][v];
    out->weight.v = below[0];
    if (!ANNEAL)
        out->weight1 = out->weight;
}

/* What the candidates of lane r's data point bring along: their energies when they are active without others, and their
 * couplings; 0 where there is no data point. */
DEVICE void gather(int start, int count, GLOBAL const real *b, GLOBAL const real *gram, GLOBAL const real *norms,
                   GLOBAL const real *slope, GLOBAL const real *offset, const real *values,
                   GLOBAL const int *candidates, lanes unary[HPRIME][VALUES], lanes *coupling)
{
    ROLLED for (int i = 0; i < HPRIME; i++)
        ROLLED for (int v = 0; v < VALUES; v++)
            unary[i][v].v = (vec)(0);
    ROLLED for (int p = 0; p < PAIRS; p++)
        coupling[p].v = (vec)(0);
    EACH_LANE(r, count)
    {
        const size_t n = start + r;
        GLOBAL const int *chosen = candidates + n * HPRIME;
        ROLLED for (int i = 0; i < HPRIME; i++) {
            const int h = chosen[i];
            const real x = slope[h] * b[n * H + h];
            ROLLED for (int v = 0; v < VALUES; v++)
                MINE(unary[i][v], r) = values[v] * x + offset[v * H + h] -
                                       (MASKED ? values[v] * values[v] / 2 * norms[n * H + h] : 0);
            ROLLED for (int j = i + 1; j < HPRIME; j++)
                MINE(coupling[PAIR(i, j)], r) = COUPLING(n, i, j);
        }
    }
}

typedef struct { /* the energies of singletons, filled up to whole vectors with -inf: lines in their products with y */
    vec slope[VALUES][CHUNKS], offset[VALUES][CHUNKS];
} lines;

DEVICE vec energy_of(const lines *of, int v, int c, const real *values, vec x, GLOBAL const real *norms, int after)
{
    vec E = of->slope[v][c] * x + of->offset[v][c];
    if (MASKED)
        E -= UNIT * VALUE(v) * UNIT * VALUE(v) / 2 * vload_row(H - c * WIDTH, 0, norms + c * WIDTH, after);
    return E;
}

KERNEL void gram_posterior(int N, GLOBAL real *RESTRICT b, GLOBAL const real *RESTRICT gram,
                           GLOBAL const real *RESTRICT norms, GLOBAL const real *RESTRICT slope,
                           GLOBAL const real *RESTRICT offset, GLOBAL const real *RESTRICT all_values,
                           GLOBAL const int *RESTRICT candidates, real beta, GLOBAL const real *RESTRICT all_shifts,
                           GLOBAL real *RESTRICT log_evidence, GLOBAL real *RESTRICT pairs,
                           GLOBAL real *RESTRICT squares, GLOBAL real *RESTRICT counts, GLOBAL real *RESTRICT full)
{
    LANES_BEGIN;
    const int start = WARP * WIDTH;
    const int count = N - start < WIDTH ? N - start : WIDTH;

    real values[VALUES], shift[VALUES], faint = 0; /* what counts as 0 of <s> */
    lines of;
    ROLLED for (int v = 0; v < VALUES; v++) {
        values[v] = all_values[v];
        shift[v] = all_shifts[v];
        faint = REAL_MAX(faint, REAL_FAINT * fabs(values[v]));
        for (int c = 0; c < CHUNKS; c++) {
            const int h = c * WIDTH;
            of.slope[v][c] = values[v] * vload_row(H - h, 0, slope + h, 0);
            of.offset[v][c] = vload_row(H - h, -REAL_INF, offset + v * H + h, 0);
        }
    }

    /* The peaks of the zero state and the singletons; then the states of several candidates. */
    superpositions many;
    many.peak.v = many.peak1.v = (vec)(0);
    for (int r = 0; r < count; r++) {
        const size_t row = (size_t)(start + r) * H;
        const int after = (count - 1 - r) * H; /* what follows in the tile are these lanes' own rows */
        vec top = (vec)(0), top1 = (vec)(0);
        for (int c = 0; c < CHUNKS; c++) {
            const vec x = vload_row(H - c * WIDTH, 0, b + row + c * WIDTH, after);
            ROLLED for (int v = 0; v < VALUES; v++) {
                const vec E = energy_of(&of, v, c, values, x, MASKED ? norms + row : norms, after);
                top = VMAX(ANNEALED(E, shift[v]), top);
                top1 = VMAX(E, top1);
            }
        }
        SET(many.peak, r, highest(top));
        if (ANNEAL)
            SET(many.peak1, r, highest(top1));
    }
    lanes unary[HPRIME][VALUES], coupling[PAIRS + 1];
    gather(start, count, b, gram, norms, slope, offset, values, candidates, unary, coupling);
    superpose(unary, coupling, values, beta, shift, &many);
    MEET();

    /* The weights of the singletons, which with the others' add up to z. */
    lanes z, z1, alone[VALUES];
    z.v = vexp(-many.peak.v) + many.weight.v;
    z1.v = vexp(-many.peak1.v) + many.weight1.v;
    ROLLED for (int v = 0; v < VALUES; v++)
        alone[v].v = (vec)(0);
    for (int r = 0; r < count; r++) {
        const size_t row = (size_t)(start + r) * H;
        const int after = (count - 1 - r) * H;
        const real peak = AT(many.peak, r), peak1 = ANNEAL ? AT(many.peak1, r) : peak;
        vec weight[VALUES][CHUNKS], all = (vec)(0), sum[VALUES], sum1 = (vec)(0);
        ROLLED for (int v = 0; v < VALUES; v++)
            sum[v] = (vec)(0);
        for (int c = 0; c < CHUNKS; c++) {
            const vec x = vload_row(H - c * WIDTH, 0, b + row + c * WIDTH, after);
            ROLLED for (int v = 0; v < VALUES; v++) {
                const vec E1 = energy_of(&of, v, c, values, x, MASKED ? norms + row : norms, after);
                const vec E = ANNEALED(E1, shift[v]) - peak;
                if (ANNEAL)
                    sum1 += vexp(E1 - peak1);
                weight[v][c] = (vec)(0);
                if (WHERE(E > FAINT_ENERGY)) {
                    weight[v][c] = vexp(E);
                    sum[v] += weight[v][c];
                }
            }
        }
        ROLLED for (int v = 0; v < VALUES; v++)
            all += sum[v];
        const real whole = (real)total(VACC(all)) + AT(z, r), scale = 1 / whole;
        SET(z, r, whole);
        if (ANNEAL)
            SET(z1, r, (real)total(VACC(sum1)) + AT(z1, r));
        ROLLED for (int v = 0; v < VALUES && VALUES > 1; v++)
            SET(alone[v], r, scale * (real)total(VACC(sum[v])));
        for (int c = 0; c < CHUNKS; c++) {
            const int h = c * WIDTH;
            vec first = (vec)(0), second = (vec)(0);
            ROLLED for (int v = 0; v < VALUES; v++) {
                first += VALUE(v) * weight[v][c];
                second += VALUE(v) * VALUE(v) * weight[v][c];
            }
            first *= UNIT * scale;
            vstore_row(fabs(first) < faint ? (vec)(0) : first, H - h, b + row + h, after);
            if (VALUES > 1)
                vstore_row(scale * second, H - h, squares + row + h, after);
        }
    }
    MEET();

    /* What the states of several candidates add. */
    lanes evidence, peak1, scale;
    peak1.v = ANNEAL ? many.peak1.v : many.peak.v;
    evidence.v = peak1.v + log(ANNEAL ? z1.v : z.v);
    scale.v = 1 / z.v;
    EACH_LANE(r, count)
    {
        const size_t n = start + r;
        const real some = MINE(scale, r);
        GLOBAL const int *chosen = candidates + n * HPRIME;
        log_evidence[n] = MINE(evidence, r);
        full[n] = (real)(LEVELS > 1 ? MINE(many.most, r) >= MINE(peak1, r) : MINE(peak1, r) > 0);
        ROLLED for (int p = 0; p < PAIRS; p++)
            pairs[n * PAIRS + p] = UNIT * UNIT * MINE(many.pair[p], r) * some;
        ROLLED for (int i = 0; i < HPRIME; i++) {
            real mean = b[n * H + chosen[i]];
            ROLLED for (int v = 0; v < VALUES; v++)
                mean += UNIT * VALUE(v) * MINE(many.single[i][v], r) * some;
            b[n * H + chosen[i]] = fabs(mean) < faint ? 0 : mean;
        }
        ROLLED for (int v = 0; v < VALUES && VALUES > 1; v++) {
            real sum = 0;
            ROLLED for (int i = 0; i < HPRIME; i++) {
                const real mean = MINE(many.single[i][v], r) * some;
                squares[n * H + chosen[i]] += VALUE(v) * VALUE(v) * mean;
                sum += mean;
            }
            counts[n * VALUES + v] = MINE(alone[v], r) + sum;
        }
    }
}
