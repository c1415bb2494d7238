/* causes.c: the truncated posterior of binary latents whose fields combine without being added (MCA, noisy-OR).
 *
 * How they combine, a fragment says (kernels/fragments/): for each dimension d, with c what a state combines to,
 *
 *   start(y)          c of the state without causes
 *   combine(c, w, y)  c with one more cause, of field w
 *   term(y, c)        setting[0] sum_d term is log p(y | s), up to what no state changes
 *   share(w, c, y)    the statistic A of an active latent of field w
 *   value(c, y)       E[y_d | s]
 *   RELATIVE          1: energies are relative to the state without causes
 *   EXCLUSIVE         1: of equal fields the first has the whole share
 *   IMPUTED           1: E[A y] of a missing y is E[A value]; 0: what is missing does not count
 *   NOTHING           the field of a cause without influence
 *
 *   E(s)  = setting[0] sum_d term + sum of prior_h over the active latents; of singletons: b_h + offset_h
 *   K_n   = {0}, the H singletons, the states of 2 ... GAMMA active latents, all of them candidates
 *   q(s)  ~ exp(beta E(s) + sum of shift_h) over K_n
 *
 *   observed (N, D)        0 where y is missing (y is 0 there), if MISSING
 *   b (N, H)               in: products that give the singletons' energies; out: weight_n q of the singletons
 *   fields (H, D)          a latent's in each row
 *   weights (N,)           of the data points in b, mean and sums; a point of weight 0 may be skipped
 *   log_evidence (N,)      log sum over K_n of exp E(s), unannealed
 *   energy (N,)            the mean of E under q
 *   mean (N, H)            weight_n <s>
 *   reconstruction (N, D)  the mean of `value` under q, if RECONSTRUCT
 *   sums (GROUPS, 2, H, D) sum over n of weight_n <A> and weight_n <A y>, of the states of several causes, if STATS
 *   full (N,)              1 where GAMMA latents are active in the state of the largest E, else 0
 *
 * States whose q is below SKIP do not enter <A> and the reconstruction: in any but the sums of a latent that hardly
 * ever wins, rounding is larger.
 * Group g takes the data points g, g + GROUPS, ...; the same number of groups gives the same bits.
 * Sizes: D, H, HPRIME, GAMMA, MANY (states of several causes); ANNEAL 0 promises beta = 1 and shift = 0.
 */
#define SKIP ((real)(GEM_REAL == 64 ? 1e-30 : 1e-12))
#define SETTINGS 4 /* as many as a fragment may have */
#define WANTED (STATS || RECONSTRUCT)
#define LEFT_OUT (MISSING && !IMPUTED) /* what is missing does not count */

#if ANNEAL
#define ANNEALED(E, shift) (beta * (E) + (shift))
#else
#define ANNEALED(E, shift) (E)
#endif

#if WIDTH > 1
/* ------------------------------------------------------------------ CPU devices: a vector holds WIDTH dimensions
 * One data point after the other. The states of several causes are walked depth first: node by node, each its
 * parent with one more candidate on. Nodes are numbered in that order, those of one cause included. */

#define CHUNKS ((D + WIDTH - 1) / WIDTH)
#define NODES (MANY + HPRIME)
#define NODE_CHUNKS ((NODES + WIDTH - 1) / WIDTH)
#define LATENT_CHUNKS ((H + WIDTH - 1) / WIDTH)

typedef union {
    vec v[NODE_CHUNKS];
    real at[NODE_CHUNKS * WIDTH];
} nodes;

typedef struct { /* a data point */
    vec y[CHUNKS], observed[CHUNKS];
    vec field[HPRIME][CHUNKS];
    vec c[GAMMA + 1][CHUNKS]; /* what the first candidates of the path to a node combine to */
    real prior[HPRIME], shift[HPRIME];
    nodes energy, weight; /* -inf and 0 of a single cause: singletons have closed forms */
    int end[NODES];       /* the node that comes after all that a node leads to */
    int alive[NODES + 1]; /* how many nodes before have a weight to speak of */
    vec A[HPRIME][CHUNKS], Ay[HPRIME][CHUNKS];
    real many[HPRIME]; /* <s> from the states of several causes */
    vec mean[CHUNKS];  /* of value */
} point;

/* A row of D numbers, filled up to whole vectors. */
DEVICE void load_row(GLOBAL const real *row, real fill, vec *out)
{
    for (int i = 0; i < CHUNKS; i++)
        out[i] = (i + 1) * WIDTH <= D ? VLOAD(row + i * WIDTH) : vload_part(D % WIDTH, fill, row + i * WIDTH);
}

/* sum_d term */
DEVICE real likelihood(const point *p, const vec *c, const real *setting)
{
    vec sum = (vec)(0);
    for (int i = 0; i < CHUNKS; i++)
        sum += MISSING ? term(p->y[i], c[i], setting) * p->observed[i] : term(p->y[i], c[i], setting);
    return (real)total(VACC(sum));
}

/* The energies of all nodes, and their exponents before they become weights; returns the largest E of GAMMA causes, if
 * these are several. */
DEVICE real walk(point *p, real beta, real reference, const real *setting)
{
    int last[GAMMA + 1], number[GAMMA + 1], node = 0, level = 1;
    real prior[GAMMA + 1], shift[GAMMA + 1], most = -REAL_INF;
    prior[0] = shift[0] = 0;
    last[1] = 0;
    while (level > 0) {
        const int k = last[level];
        prior[level] = prior[level - 1] + p->prior[k];
        shift[level] = shift[level - 1] + p->shift[k];
        number[level] = node;
        if (level == 1) {
            for (int i = 0; i < CHUNKS; i++)
                p->c[1][i] = combine(p->c[0][i], p->field[k][i], p->y[i], setting);
            p->energy.at[node] = p->weight.at[node] = -REAL_INF;
        } else {
            vec sum = (vec)(0);
            for (int i = 0; i < CHUNKS; i++) {
                const vec c = combine(p->c[level - 1][i], p->field[k][i], p->y[i], setting);
                const vec t = term(p->y[i], c, setting);
                sum += MISSING ? t * p->observed[i] : t;
                p->c[level][i] = c;
            }
            const real E = setting[0] * (real)total(VACC(sum)) - reference + prior[level];
            p->energy.at[node] = E;
            p->weight.at[node] = ANNEALED(E, shift[level]);
            if (level == GAMMA)
                most = REAL_MAX(E, most);
        }
        node++;
        if (level < GAMMA && k + 1 < HPRIME) {
            last[++level] = k + 1;
            continue;
        }
        do
            p->end[number[level]] = node;
        while (++last[level] == HPRIME && --level > 0);
    }
    return most;
}

/* What a state of `level` causes, path[1] ... path[level], adds to the statistics. */
DEVICE void add_state(point *p, real weight, const int *path, int level, const real *setting)
{
    for (int l = 1; l <= level; l++)
        p->many[path[l]] += weight;
    for (int i = 0; i < CHUNKS && WANTED; i++) {
        const vec c = p->c[level][i], y = p->y[i];
        if (RECONSTRUCT)
            p->mean[i] += weight * value(c, y, setting);
        vec left = (vec)(weight);
        if (LEFT_OUT)
            left *= p->observed[i];
        const vec expected = MISSING && IMPUTED ? y + (1 - p->observed[i]) * value(c, y, setting) : y;
        for (int l = 1; l <= level && STATS; l++) {
            const vec given = left * share(p->field[path[l]][i], c, y, setting);
            p->A[path[l]][i] += given;
            if (MISSING)
                p->Ay[path[l]][i] += given * expected;
            if (EXCLUSIVE)
                left -= given;
        }
    }
}

/* All states whose weight counts, in one more walk; branches without any are left out. */
DEVICE void collect(point *p, const real *setting)
{
    int path[GAMMA + 1], node = 0, level = 1;
    path[1] = 0;
    while (level > 0) {
        const int k = path[level], deep = p->alive[p->end[node]] > p->alive[node];
        if (deep) {
            for (int i = 0; i < CHUNKS && WANTED; i++)
                p->c[level][i] = combine(p->c[level - 1][i], p->field[k][i], p->y[i], setting);
            if (p->alive[node + 1] > p->alive[node])
                add_state(p, p->weight.at[node], path, level, setting);
            node++;
        } else {
            node = p->end[node];
        }
        if (deep && level < GAMMA && k + 1 < HPRIME)
            path[++level] = k + 1;
        else
            while (++path[level] == HPRIME && --level > 0)
                ;
    }
}

/* Add the point's statistics to the group's. */
DEVICE void add_point(const point *p, real weight, GLOBAL const int *chosen, GLOBAL acc *sums)
{
    for (int k = 0; k < HPRIME; k++) {
        if (p->many[k] == 0)
            continue;
        GLOBAL acc *A = sums + (size_t)chosen[k] * D, *Ay = A + (size_t)H * D;
        for (int i = 0; i < CHUNKS; i++) {
            lanes a, ay;
            a.v = weight * p->A[k][i];
            ay.v = MISSING ? weight * p->Ay[k][i] : a.v * p->y[i];
            if ((i + 1) * WIDTH <= D) {
                VSTORE_ACC(VLOAD_ACC(A + i * WIDTH) + VACC(a.v), A + i * WIDTH);
                VSTORE_ACC(VLOAD_ACC(Ay + i * WIDTH) + VACC(ay.v), Ay + i * WIDTH);
            } else {
                for (int d = i * WIDTH; d < D; d++) {
                    A[d] += a.at[d % WIDTH];
                    Ay[d] += ay.at[d % WIDTH];
                }
            }
        }
    }
}

KERNEL void causes(int N, GLOBAL const real *RESTRICT Y, GLOBAL const real *RESTRICT observed, GLOBAL real *RESTRICT b,
                   GLOBAL const real *RESTRICT fields, GLOBAL const real *RESTRICT offset,
                   GLOBAL const real *RESTRICT prior, GLOBAL const real *RESTRICT shift,
                   GLOBAL const real *RESTRICT settings,
                   GLOBAL const int *RESTRICT candidates, real beta, GLOBAL const real *RESTRICT weights,
                   GLOBAL real *RESTRICT log_evidence, GLOBAL real *RESTRICT energy, GLOBAL real *RESTRICT mean,
                   GLOBAL real *RESTRICT reconstruction, GLOBAL acc *RESTRICT sums, GLOBAL real *RESTRICT full)
{
    real setting[SETTINGS];
    for (int i = 0; i < SETTINGS; i++)
        setting[i] = settings[i];
    vec offsets[LATENT_CHUNKS], shifts[LATENT_CHUNKS]; /* filled up with energies of -inf */
    for (int i = 0; i < LATENT_CHUNKS; i++) {
        const int h = i * WIDTH, left = H - h < WIDTH ? H - h : WIDTH;
        offsets[i] = vload_part(left, -REAL_INF, offset + h);
        shifts[i] = vload_part(left, 0, shift + h);
    }
    GLOBAL acc *own = sums + (size_t)GROUP_ID * 2 * H * D;
    for (int i = 0; i < 2 * H * D && STATS; i++)
        own[i] = 0;

    point p;
    for (size_t n = GROUP_ID; n < N; n += GROUPS) {
        GLOBAL real *row = b + n * H, *activity = mean + n * H;
        GLOBAL const int *chosen = candidates + n * HPRIME;
        const real weight = weights[n];

        load_row(Y + n * D, 0, p.y);
        if (MISSING)
            load_row(observed + n * D, 0, p.observed);
        for (int k = 0; k < HPRIME; k++) {
            load_row(fields + (size_t)chosen[k] * D, NOTHING, p.field[k]);
            p.prior[k] = prior[chosen[k]];
            p.shift[k] = shift[chosen[k]];
        }
        for (int i = 0; i < CHUNKS; i++)
            p.c[0][i] = start(p.y[i], setting);
        const real empty = setting[0] * likelihood(&p, p.c[0], setting), zero = RELATIVE ? 0 : empty;
        p.energy.v[NODE_CHUNKS - 1] = p.weight.v[NODE_CHUNKS - 1] = (vec)(-REAL_INF); /* the rest of the last vector */
        const real most = walk(&p, beta, RELATIVE ? empty : 0, setting);

        /* The peaks, and the weights of all states. */
        vec top = (vec)(ANNEALED(zero, 0)), top1 = (vec)(zero);
        union {
            vec v[LATENT_CHUNKS];
            real at[LATENT_CHUNKS * WIDTH];
        } single;
        for (int i = 0; i < LATENT_CHUNKS; i++) {
            const int h = i * WIDTH;
            const vec x = h + WIDTH <= H ? VLOAD(row + h) : vload_part(H % WIDTH, 0, row + h);
            single.v[i] = x + offsets[i];
            top = VMAX(ANNEALED(single.v[i], shifts[i]), top);
            top1 = VMAX(single.v[i], top1);
        }
        for (int i = 0; i < NODE_CHUNKS; i++) {
            top = VMAX(p.weight.v[i], top);
            top1 = VMAX(p.energy.v[i], top1);
        }
        const real peak = highest(top), peak1 = ANNEAL ? highest(top1) : peak;
        vec sum = (vec)(0), sum1 = (vec)(0), energies = (vec)(0);
        for (int i = 0; i < LATENT_CHUNKS; i++) {
            const vec E = single.v[i], q = vexp(ANNEALED(E, shifts[i]) - peak);
            sum += q;
            energies += q > 0 ? q * E : (vec)(0);
            if (ANNEAL)
                sum1 += vexp(E - peak1);
            single.v[i] = q;
        }
        for (int i = 0; i < NODE_CHUNKS; i++) {
            const vec E = p.energy.v[i], q = vexp(p.weight.v[i] - peak);
            sum += q;
            energies += q > 0 ? q * E : (vec)(0);
            if (ANNEAL)
                sum1 += vexp(E - peak1);
            p.weight.v[i] = q;
        }
        const real zero_weight = REAL_EXP(ANNEALED(zero, 0) - peak);
        const real z = (real)total(VACC(sum)) + zero_weight;
        const real z1 = ANNEAL ? (real)total(VACC(sum1)) + REAL_EXP(zero - peak1) : z;
        const real scale = 1 / z;
        log_evidence[n] = peak1 + REAL_LOG(z1);
        full[n] = (real)(GAMMA > 1 ? most >= peak1 : peak1 > zero);
        energy[n] = scale * ((real)total(VACC(energies)) + (zero_weight > 0 ? zero_weight * zero : 0));

        p.alive[0] = 0;
        for (int i = 0; i < NODES; i++) {
            p.weight.at[i] *= scale;
            p.alive[i + 1] = p.alive[i] + (p.weight.at[i] > SKIP);
        }
        for (int k = 0; k < HPRIME; k++) {
            p.many[k] = 0;
            for (int i = 0; i < CHUNKS && STATS; i++)
                p.A[k][i] = p.Ay[k][i] = (vec)(0);
        }
        for (int h = 0; h < H; h++)
            activity[h] = row[h] = SETTLED(weight * scale * single.at[h]);
        if (RECONSTRUCT)
            for (int i = 0; i < CHUNKS; i++)
                p.mean[i] = zero_weight > 0 ? zero_weight * scale * value(p.c[0][i], p.y[i], setting) : (vec)(0);
        if (p.alive[NODES] > 0)
            collect(&p, setting);
        for (int k = 0; k < HPRIME; k++)
            activity[chosen[k]] += weight * p.many[k];
        if (STATS && weight != 0 && p.alive[NODES] > 0)
            add_point(&p, weight, chosen, own);

        for (int h = 0; h < H && RECONSTRUCT; h++) {
            const real q = scale * single.at[h];
            if (q <= SKIP)
                continue;
            vec field[CHUNKS];
            load_row(fields + (size_t)h * D, NOTHING, field);
            for (int i = 0; i < CHUNKS; i++)
                p.mean[i] += q * value(combine(p.c[0][i], field[i], p.y[i], setting), p.y[i], setting);
        }
        for (int i = 0; i < CHUNKS && RECONSTRUCT; i++)
            vstore_part(p.mean[i], D - i * WIDTH < WIDTH ? D - i * WIDTH : WIDTH, reconstruction + n * D + i * WIDTH);
    }
}

#else
/* ------------------------------------------------------- GPUs: a group takes one data point, D in pieces of PIECE
 * For the energies work-items take states, for the statistics dimensions; each state is combined anew from the
 * fields in local memory, so that nothing is handed on between work-items but energies. The states of the
 * candidates are a table: see gram_posterior.c. */

#define MOST (HPRIME > 8 ? 32 : 64) /* so that there is local memory for it in float64, too */
#define PIECE (D < MOST ? D : MOST)
#define PITCH (PIECE | 1) /* odd: a row's neighbours are in different banks */
#define FIRST_OF_MANY STATE_LEVEL[2]

typedef struct { /* a piece of the data point, and of its candidates' fields */
    real y[PITCH], observed[PITCH], field[HPRIME][PITCH];
} piece;

DEVICE void load_piece(int d, int count, GLOBAL const real *y, GLOBAL const real *observed,
                       GLOBAL const real *fields, GLOBAL const int *chosen, LOCAL_PTR piece *p)
{
    BARRIER(); /* the piece before has been used */
    for (int i = LOCAL_ID; i < count; i += GROUP) {
        p->y[i] = y[d + i];
        p->observed[i] = MISSING ? observed[d + i] : 1;
        for (int k = 0; k < HPRIME; k++)
            p->field[k][i] = fields[(size_t)chosen[k] * D + d + i];
    }
    BARRIER();
}

/* What the candidates in `mask` combine to, in dimension i of the piece. */
DEVICE real combined(unsigned int mask, int i, LOCAL_PTR const piece *p, const real *setting)
{
    real c = start(p->y[i], setting);
    for (; mask != 0; mask &= mask - 1)
        c = combine(c, p->field[LOWEST_BIT(mask)][i], p->y[i], setting);
    return c;
}

/* Dimension i of the piece: its <A> and <A y> added to the group's sums; returns the mean of `value`. */
DEVICE real add_dimension(int i, real weight, TABLE_PTR const unsigned int *masks, STATE_PTR const real *q,
                          LOCAL_PTR const piece *p, LOCAL_PTR real (*A)[PITCH], LOCAL_PTR real (*Ay)[PITCH],
                          const real *setting)
{
    const real y = p->y[i];
    real mean = 0;
    for (int k = 0; k < HPRIME; k++)
        A[k][i] = Ay[k][i] = 0;
    for (int s = FIRST_OF_MANY; s < STATES; s++) {
        if (q[s] <= SKIP)
            continue;
        const real c = combined(masks[s], i, p, setting);
        if (RECONSTRUCT)
            mean += q[s] * value(c, y, setting);
        real left = weight * q[s];
        if (LEFT_OUT)
            left *= p->observed[i];
        const real expected = MISSING && IMPUTED ? y + (1 - p->observed[i]) * value(c, y, setting) : y;
        for (unsigned int mask = masks[s]; STATS && mask != 0; mask &= mask - 1) {
            const int k = LOWEST_BIT(mask);
            const real given = left * share(p->field[k][i], c, y, setting);
            A[k][i] += given;
            Ay[k][i] += given * expected;
            if (EXCLUSIVE)
                left -= given;
        }
    }
    return mean;
}

KERNEL void causes(int N, GLOBAL const real *RESTRICT Y, GLOBAL const real *RESTRICT observed, GLOBAL real *RESTRICT b,
                   GLOBAL const real *RESTRICT fields, GLOBAL const real *RESTRICT offset,
                   GLOBAL const real *RESTRICT prior, GLOBAL const real *RESTRICT shift,
                   GLOBAL const real *RESTRICT settings,
                   GLOBAL const int *RESTRICT candidates, real beta, GLOBAL const real *RESTRICT weights,
                   GLOBAL real *RESTRICT log_evidence, GLOBAL real *RESTRICT energy, GLOBAL real *RESTRICT mean,
                   GLOBAL real *RESTRICT reconstruction, GLOBAL acc *RESTRICT sums, GLOBAL real *RESTRICT full
                   SPILL_ARGUMENTS)
{
    LOCAL acc scratch[GROUP];
    STATE_ROOM(state, 1, 0, STATES); /* energies, then q */
    LOCAL real A[HPRIME][PITCH], Ay[HPRIME][PITCH];
    LOCAL piece p;
    real setting[SETTINGS];
    for (int i = 0; i < SETTINGS; i++)
        setting[i] = settings[i];
    GLOBAL acc *own = sums + (size_t)GROUP_ID * 2 * H * D;
    for (int i = LOCAL_ID; i < 2 * H * D && STATS; i += GROUP)
        own[i] = 0;

    for (size_t n = GROUP_ID; n < (size_t)N; n += GROUPS) {
        GLOBAL real *row = b + n * H, *activity = mean + n * H;
        GLOBAL const int *chosen = candidates + n * HPRIME;
        const real weight = weights[n];

        for (int s = LOCAL_ID; s < STATES; s += GROUP)
            state[s] = 0;
        for (int d = 0; d < D; d += PIECE) {
            const int count = D - d < PIECE ? D - d : PIECE;
            load_piece(d, count, Y + n * D, observed + n * D, fields, chosen, &p);
            for (int s = LOCAL_ID; s < STATES; s += GROUP) {
                real sum = 0;
                for (int i = 0; i < count; i++)
                    sum += term(p.y[i], combined(STATE_MASK[s], i, &p, setting), setting) * p.observed[i];
                state[s] += sum;
            }
        }
        BARRIER();
        const real empty = setting[0] * state[0], zero = RELATIVE ? 0 : empty;

        /* Energies and peaks. */
        real top = ANNEALED(zero, 0), top1 = zero, most = -REAL_INF; /* the largest E of GAMMA causes, if several */
        for (int s = FIRST_OF_MANY + LOCAL_ID; s < STATES; s += GROUP) {
            real E = setting[0] * state[s] - (RELATIVE ? empty : 0), moved = 0;
            for (unsigned int mask = STATE_MASK[s]; mask != 0; mask &= mask - 1) {
                E += prior[chosen[LOWEST_BIT(mask)]];
                moved += shift[chosen[LOWEST_BIT(mask)]];
            }
            state[s] = E;
            top = REAL_MAX(ANNEALED(E, moved), top);
            top1 = REAL_MAX(E, top1);
            if (s >= STATE_LEVEL[GAMMA])
                most = REAL_MAX(E, most);
        }
        for (int h = LOCAL_ID; h < H; h += GROUP) {
            const real E = row[h] + offset[h];
            top = REAL_MAX(ANNEALED(E, shift[h]), top);
            top1 = REAL_MAX(E, top1);
        }
        const real peak = group_max(top, scratch), peak1 = ANNEAL ? group_max(top1, scratch) : peak;
        const real most1 = GAMMA > 1 ? group_max(most, scratch) : 0;

        /* Weights. */
        acc sum = 0, sum1 = 0, energies = 0;
        for (int h = LOCAL_ID; h < H; h += GROUP) {
            const real E = row[h] + offset[h], q = REAL_EXP(ANNEALED(E, shift[h]) - peak);
            sum += q;
            energies += q > 0 ? q * E : 0;
            if (ANNEAL)
                sum1 += REAL_EXP(E - peak1);
            row[h] = q;
        }
        for (int s = FIRST_OF_MANY + LOCAL_ID; s < STATES; s += GROUP) {
            const real E = state[s];
            real moved = 0;
            for (unsigned int mask = STATE_MASK[s]; ANNEAL && mask != 0; mask &= mask - 1)
                moved += shift[chosen[LOWEST_BIT(mask)]];
            const real q = REAL_EXP(ANNEALED(E, moved) - peak);
            sum += q;
            energies += q > 0 ? q * E : 0;
            if (ANNEAL)
                sum1 += REAL_EXP(E - peak1);
            state[s] = q;
        }
        const real zero_weight = REAL_EXP(ANNEALED(zero, 0) - peak);
        const real z = (real)(group_sum(sum, scratch) + zero_weight);
        const real z1 = ANNEAL ? (real)(group_sum(sum1, scratch) + REAL_EXP(zero - peak1)) : z;
        const real scale = 1 / z;
        const acc mean_energy = group_sum(energies, scratch);
        if (LOCAL_ID == 0) {
            log_evidence[n] = peak1 + REAL_LOG(z1);
            full[n] = (real)(GAMMA > 1 ? most1 >= peak1 : peak1 > zero);
            energy[n] = scale * ((real)mean_energy + (zero_weight > 0 ? zero_weight * zero : 0));
        }
        for (int h = LOCAL_ID; h < H; h += GROUP)
            row[h] *= scale;
        for (int s = FIRST_OF_MANY + LOCAL_ID; s < STATES; s += GROUP)
            state[s] *= scale;
        BARRIER();

        for (int d = 0; d < D && WANTED; d += PIECE) {
            const int count = D - d < PIECE ? D - d : PIECE;
            load_piece(d, count, Y + n * D, observed + n * D, fields, chosen, &p);
            for (int i = LOCAL_ID; i < count; i += GROUP) {
                real y = add_dimension(i, weight, STATE_MASK, state, &p, A, Ay, setting);
                for (int k = 0; k < HPRIME && STATS; k++)
                    if (A[k][i] != 0) {
                        own[(size_t)chosen[k] * D + d + i] += A[k][i];
                        own[(size_t)(H + chosen[k]) * D + d + i] += Ay[k][i];
                    }
                if (RECONSTRUCT) {
                    const real c = start(p.y[i], setting);
                    y += zero_weight > 0 ? zero_weight * scale * value(c, p.y[i], setting) : 0;
                    for (int h = 0; h < H; h++)
                        if (row[h] > SKIP)
                            y += row[h] * value(combine(c, fields[(size_t)h * D + d + i], p.y[i], setting), p.y[i],
                                                setting);
                    reconstruction[n * D + d + i] = y;
                }
            }
        }
        BARRIER();
        for (int h = LOCAL_ID; h < H; h += GROUP)
            activity[h] = row[h] *= weight;
        BARRIER();
        for (int k = LOCAL_ID; k < HPRIME; k += GROUP) {
            real many = 0;
            for (int s = FIRST_OF_MANY; s < STATES; s++)
                many += STATE_MASK[s] >> k & 1 ? state[s] : 0;
            activity[chosen[k]] += weight * many;
        }
        BARRIER(); /* before the next data point */
    }
}
#endif
