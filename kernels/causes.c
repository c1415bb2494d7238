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
 *   FACTORS           1, may be left out: term is the logarithm of a factor, setting[0] is 1. factor(y) is that of no
 *                     cause, times(w) f + plus(w, y) that of one more cause than f is of
 *
 *   E(s)  = setting[0] sum_d term + sum of prior_h over the active latents; of singletons: b_h + offset_h
 *   K_n   = {0}, the H singletons, the states of 2 ... GAMMA active latents, all of them candidates
 *   q(s)  ~ exp(beta E(s) + sum of shift_h) over K_n
 *
 *   observed (N, D)        0 where y is missing (y is 0 there), if MISSING
 *   b (N, H)               in: products that give the singletons' energies; out: weight_n q of the singletons. If
 *                          EXCLUSIVE and not RELATIVE, those of the candidates are taken anew, and by what the products
 *                          had been off in the mean of these all others are mended: it is the same for all states
 *   fields (H, D)          a latent's in each row
 *   weights (N,)           of the data points in b, mean and sums; a point of weight 0 may be skipped
 *   log_evidence (N,)      log sum over K_n of exp E(s), unannealed
 *   energy (N,)            the mean of E under q
 *   mean (N, H)            weight_n <s>
 *   reconstruction (N, D)  the mean of `value` under q, if RECONSTRUCT
 *   sums (WARPS, 2, H, D)  sum over n of weight_n <A> and weight_n <A y>, of the states of several causes, if STATS
 *   full (N,)              1 where GAMMA latents are active in the state of the largest E, else 0
 *
 * States whose q is below SKIP do not enter <A> and the reconstruction: in any but the sums of a latent that hardly
 * ever wins, rounding is larger.
 * One data point after the other: WIDTH dimensions are lanes, D is taken in pieces. The states of several causes are
 * walked depth first: node by node, each its parent with one more candidate on; a node has a number in that order, those
 * of one cause included. Energies and weights of nodes are in lanes by that number.
 *
 * Warp g takes the data points g, g + WARPS, ...; the same number of warps gives the same bits.
 * Sizes: D, H, HPRIME, GAMMA, MANY (states of several causes); ANNEAL 0 promises beta = 1 and shift = 0.
 */
#define SKIP ((real)(GEM_REAL == 64 ? 1e-30 : 1e-12))
#define SETTINGS 4 /* as many as fragments may have */
#define WANTED (STATS || RECONSTRUCT)
#define LEFT_OUT (MISSING && !IMPUTED) /* what is missing does not count */
#define PIECE ((D < 256 ? D + WIDTH - 1 : 256) / WIDTH)
#define COUNT(p) (D <= PIECE * WIDTH ? PIECE : (p).count) /* vectors of the piece */
#define CORRECTED (EXCLUSIVE && !RELATIVE) /* singletons: see `correct` */
#define NODES (MANY + HPRIME)
#define NODE_ROWS ((NODES + WIDTH - 1) / WIDTH)
#define LATENT_ROWS ((H + WIDTH - 1) / WIDTH)

#if ANNEAL
#define ANNEALED(E, shift) (beta * (E) + (shift))
#else
#define ANNEALED(E, shift) (E)
#endif

#ifndef FACTORS
#define FACTORS 0
#define factor(y, setting) (y)
#define times(w) (w)
#define plus(w, y, setting) (y)
#endif

typedef struct {
    int count; /* vectors, if D has several pieces */
    vec y[PIECE], observed[PIECE];
    vec field[HPRIME][PIECE]; /* FACTORS, while states are walked: times(w) */
    vec alone[HPRIME][PIECE]; /* EXCLUSIVE: the term of a candidate that is seen; FACTORS: plus(w) */
    vec c[GAMMA + 1][PIECE];  /* what the first causes of the path to a node combine to, */
    vec t[GAMMA + 1][PIECE];  /* and, if EXCLUSIVE, its term */
    vec A[HPRIME][PIECE], Ay[HPRIME][PIECE], mean[PIECE];
} piece;

typedef struct {
    int below[GAMMA + 1][HPRIME]; /* nodes that grow out of one of this level and last candidate, itself included */
    int deepest[NODE_ROWS], alive[NODE_ROWS]; /* bits of nodes: has GAMMA causes; has a weight to speak of */
    real prior[HPRIME], shift[HPRIME];
    real many[HPRIME]; /* <s> from the states of several causes */
    lanes energy[NODE_ROWS], weight[NODE_ROWS];
} tree;

DEVICE void count_nodes(tree *t)
{
    for (int level = GAMMA; level > 0; level--)
        ROLLED for (int k = HPRIME - 1; k >= 0; k--) {
            t->below[level][k] = 1;
            ROLLED for (int j = k + 1; j < HPRIME && level < GAMMA; j++)
                t->below[level][k] += t->below[level + 1][j];
        }
}

DEVICE void load_data(piece *p, int d, size_t after, GLOBAL const real *y, GLOBAL const real *observed)
{
    p->count = D <= PIECE * WIDTH || D - d >= PIECE * WIDTH ? PIECE : (D - d + WIDTH - 1) / WIDTH;
    for (int i = 0; i < COUNT(*p); i++) {
        p->y[i] = vload_row(D - d - i * WIDTH, 0, y + d + i * WIDTH, after);
        if (MISSING)
            p->observed[i] = vload_row(D - d - i * WIDTH, 0, observed + d + i * WIDTH, after);
    }
}

/* The candidates' fields, or what a walk takes of them. */
DEVICE void load_fields(piece *p, int d, GLOBAL const real *fields, GLOBAL const int *chosen, int walk,
                        const real *setting)
{
    ROLLED for (int k = 0; k < HPRIME; k++) {
        GLOBAL const real *row = fields + (size_t)chosen[k] * D + d;
        const size_t after = (size_t)(H - 1 - chosen[k]) * D;
        ROLLED for (int i = 0; i < COUNT(*p); i++) {
            const vec y = p->y[i], w = vload_row(D - d - i * WIDTH, NOTHING, row + i * WIDTH, after);
            const vec one = (vec)(1), none = (vec)(0);
            p->field[k][i] = w;
            if (walk && FACTORS) {
                p->field[k][i] = MISSING ? (p->observed[i] > 0 ? times(w) : one) : times(w);
                p->alone[k][i] = MISSING ? (p->observed[i] > 0 ? plus(w, y, setting) : none) : plus(w, y, setting);
            } else if (walk && EXCLUSIVE) {
                const vec t = term(y, combine(start(y, setting), w, y, setting), setting);
                p->alone[k][i] = MISSING ? t * p->observed[i] : t;
            }
        }
    }
}

/* What no cause combines to; returns the sum of its terms, over the lanes' own dimensions. */
DEVICE vec begin(piece *p, const real *setting)
{
    vec sum = (vec)(0), m = (vec)(1);
    ivec power = (ivec)(0);
    for (int i = 0; i < COUNT(*p); i++) {
        const vec y = p->y[i], one = (vec)(1);
        if (FACTORS) {
            p->c[0][i] = MISSING ? (p->observed[i] > 0 ? factor(y, setting) : one) : factor(y, setting);
            MULTIPLY(m, power, p->c[0][i]);
        } else {
            const vec c = start(y, setting), t = term(y, c, setting);
            p->c[0][i] = c;
            p->t[0][i] = MISSING ? t * p->observed[i] : t;
            sum += p->t[0][i];
        }
    }
    return FACTORS ? vlog_product(m, power, COUNT(*p)) : sum;
}

/* The same of a node: of its parent's causes, and candidate k. */
DEVICE vec grow(piece *p, int level, int k, const real *setting)
{
    vec sum = (vec)(0), m = (vec)(1);
    ivec power = (ivec)(0);
    for (int i = 0; i < COUNT(*p); i++) {
        const vec before = p->c[level - 1][i], w = p->field[k][i];
        if (FACTORS) {
            const vec c = before * w + p->alone[k][i];
            MULTIPLY(m, power, c);
            p->c[level][i] = c;
        } else {
            const vec c = combine(before, w, p->y[i], setting);
            vec t;
            if (EXCLUSIVE) {
                t = c == before ? p->t[level - 1][i] : p->alone[k][i];
                p->t[level][i] = t;
            } else {
                t = term(p->y[i], c, setting);
                t = MISSING ? t * p->observed[i] : t;
            }
            sum += t;
            p->c[level][i] = c;
        }
    }
    return FACTORS ? vlog_product(m, power, COUNT(*p)) : sum;
}

/* Add a piece's part to the energies of all nodes, less `reference`; with the first piece what the latents' priors
 * give, and to the weights their shifts. */
DEVICE void walk(LANES_PARAM piece *p, tree *t, int first, real reference, const real *setting)
{
    int last[GAMMA + 1], node = 0, level = 1;
    real prior[GAMMA + 1], shift[GAMMA + 1];
    vec sums[WIDTH];
    ROLLED for (int i = 0; i < WIDTH; i++)
        sums[i] = (vec)(0);
    prior[0] = shift[0] = 0;
    last[1] = 0;
    while (level > 0) {
        const int k = last[level], row = node / WIDTH, at = node % WIDTH;
        prior[level] = prior[level - 1] + t->prior[k];
        shift[level] = shift[level - 1] + t->shift[k];
        if (first) {
            if (at == 0)
                t->deepest[row] = 0;
            t->deepest[row] |= (int)((unsigned int)(level == GAMMA) << at);
            SET(t->energy[row], at, prior[level]);
            if (ANNEAL)
                SET(t->weight[row], at, shift[level]);
        }
        sums[at] = grow(p, level, k, setting);
        node++;
        if (at == WIDTH - 1 || node == NODES)
            t->energy[row].v += setting[0] * (totals(sums) - reference);
        if (level < GAMMA && k + 1 < HPRIME)
            last[++level] = k + 1;
        else
            while (++last[level] == HPRIME && --level > 0)
                ;
    }
}

/* What a state of `level` causes, path[1] ... path[level], adds to the statistics. */
DEVICE void add_state(piece *p, real weight, const int *path, int level, const real *setting)
{
    for (int i = 0; i < COUNT(*p); i++) {
        const vec c = p->c[level][i], y = p->y[i];
        if (RECONSTRUCT)
            p->mean[i] += weight * value(c, y, setting);
        vec left = (vec)(weight);
        if (LEFT_OUT)
            left *= p->observed[i];
        const vec expected = MISSING && IMPUTED ? y + (1 - p->observed[i]) * value(c, y, setting) : y;
        ROLLED for (int l = 1; l <= level && STATS; l++) {
            const vec given = left * share(p->field[path[l]][i], c, y, setting);
            p->A[path[l]][i] += given;
            if (MISSING)
                p->Ay[path[l]][i] += given * expected;
            if (EXCLUSIVE)
                left -= given;
        }
    }
}

/* The next node, from this one on, whose weight counts; NODES if there is none. */
DEVICE int next_alive(const tree *t, int node)
{
    for (; node < NODES; node = (node / WIDTH + 1) * WIDTH) {
        const unsigned int bits = (unsigned int)t->alive[node / WIDTH] >> (node % WIDTH);
        if (bits != 0)
            return node + LOWEST_BIT(bits);
    }
    return NODES;
}

/* All states whose weight counts, in one more walk; branches without any are left out. */
DEVICE void collect(LANES_PARAM piece *p, tree *t, int first, const real *setting)
{
    int path[GAMMA + 1], node = 0, level = 1, next = next_alive(t, 0);
    path[1] = 0;
    while (level > 0 && next < NODES) {
        const int k = path[level], deep = next < node + t->below[level][k];
        if (deep) {
            for (int i = 0; i < COUNT(*p) && WANTED; i++)
                p->c[level][i] = combine(p->c[level - 1][i], p->field[k][i], p->y[i], setting);
            if (next == node) {
                const real weight = AT(t->weight[node / WIDTH], node % WIDTH);
                ROLLED for (int l = 1; l <= level && first; l++)
                    t->many[path[l]] += weight;
                if (WANTED)
                    add_state(p, weight, path, level, setting);
                next = next_alive(t, node + 1);
            }
            node++;
        } else {
            node += t->below[level][k];
        }
        if (deep && level < GAMMA && k + 1 < HPRIME)
            path[++level] = k + 1;
        else
            while (++path[level] == HPRIME && --level > 0)
                ;
    }
}

/* Add a piece's statistics to the sums. */
DEVICE void add_piece(piece *p, int d, const tree *t, real weight, GLOBAL const int *chosen, GLOBAL acc *sums)
{
    ROLLED for (int k = 0; k < HPRIME; k++) {
        if (t->many[k] == 0)
            continue;
        GLOBAL acc *A = sums + (size_t)chosen[k] * D + d, *Ay = A + (size_t)H * D;
        for (int i = 0; i < COUNT(*p); i++, A += WIDTH, Ay += WIDTH) {
            const int left = D - d - i * WIDTH;
            lanes a, ay;
            a.v = weight * p->A[k][i];
            ay.v = MISSING ? weight * p->Ay[k][i] : a.v * p->y[i];
            if (left >= WIDTH) {
                VSTORE_ACC(VLOAD_ACC(A) + VACC(a.v), A);
                VSTORE_ACC(VLOAD_ACC(Ay) + VACC(ay.v), Ay);
            } else {
                EACH_LANE(r, left)
                {
                    A[r] += MINE(a, r);
                    Ay[r] += MINE(ay, r);
                }
            }
        }
    }
}

/* Of singletons whose q counts: their part in the mean of `value`. */
DEVICE void add_singletons(LANES_PARAM piece *p, int d, const lanes *single, real scale, GLOBAL const real *fields,
                           const real *setting)
{
    ROLLED for (int row = 0; row < LATENT_ROWS; row++)
        for (unsigned int bits = (unsigned int)BITS(scale * single[row].v > SKIP); bits != 0; bits &= bits - 1) {
            const int r = LOWEST_BIT(bits), h = row * WIDTH + r;
            const real q = scale * AT(single[row], r);
            GLOBAL const real *field = fields + (size_t)h * D + d;
            for (int i = 0; i < COUNT(*p); i++) {
                const vec y = p->y[i];
                const vec w = vload_row(D - d - i * WIDTH, NOTHING, field + i * WIDTH, (size_t)(H - 1 - h) * D);
                p->mean[i] += q * value(combine(start(y, setting), w, y, setting), y, setting);
            }
        }
}

/* Energies that are not RELATIVE to products: the candidates' singletons have those of the walk, and by how much these
 * are off in the mean is taken off all. */
DEVICE real correct(LANES_PARAM tree *t, GLOBAL real *row, GLOBAL const real *offset, GLOBAL const int *chosen)
{
    real off = 0;
    ROLLED for (int k = 0, node = 0; k < HPRIME; node += t->below[1][k++])
        off += row[chosen[k]] + offset[chosen[k]] - AT(t->energy[node / WIDTH], node % WIDTH);
    off /= HPRIME;
    MEET();
    ROLLED for (int k = 0, node = 0; k < HPRIME; node += t->below[1][k++]) {
        const real E = AT(t->energy[node / WIDTH], node % WIDTH);
        ONCE row[chosen[k]] = E + off - offset[chosen[k]];
    }
    MEET();
    return off;
}

KERNEL void causes(int N, GLOBAL const real *RESTRICT Y, GLOBAL const real *RESTRICT observed, GLOBAL real *RESTRICT b,
                   GLOBAL const real *RESTRICT fields, GLOBAL const real *RESTRICT offset,
                   GLOBAL const real *RESTRICT prior, GLOBAL const real *RESTRICT shift,
                   GLOBAL const real *RESTRICT settings,
                   GLOBAL const int *RESTRICT candidates, real beta, GLOBAL const real *RESTRICT weights,
                   GLOBAL real *RESTRICT log_evidence, GLOBAL real *RESTRICT energy, GLOBAL real *RESTRICT mean,
                   GLOBAL real *RESTRICT reconstruction, GLOBAL acc *RESTRICT sums, GLOBAL real *RESTRICT full)
{
    LANES_BEGIN;
    PRIVATE(setting, settings, SETTINGS);
    GLOBAL acc *own = sums + (size_t)WARP * 2 * H * D;
    if (STATS)
        EACH_LANE(i, 2 * H * D)
            own[i] = 0;
    MEET();

    vec offsets[LATENT_ROWS], shifts[LATENT_ROWS];
    ROLLED for (int i = 0; i < LATENT_ROWS; i++) {
        offsets[i] = vload_row(H - i * WIDTH, -REAL_INF, offset + i * WIDTH, 0);
        shifts[i] = vload_row(H - i * WIDTH, 0, shift + i * WIDTH, 0);
    }
    piece p;
    tree t;
    lanes single[LATENT_ROWS];
    count_nodes(&t);
    for (size_t n = WARP; n < (size_t)N; n += WARPS) {
        GLOBAL real *row = b + n * H, *activity = mean + n * H;
        GLOBAL const int *chosen = candidates + n * HPRIME;
        const real weight = weights[n];

        /* The energies of all nodes. */
        ROLLED for (int k = 0; k < HPRIME; k++) {
            t.prior[k] = prior[chosen[k]];
            t.shift[k] = shift[chosen[k]];
            t.many[k] = 0;
        }
        t.energy[NODE_ROWS - 1].v = t.weight[NODE_ROWS - 1].v = (vec)(-REAL_INF); /* beyond the last node */
        real empty = 0;
        for (int d = 0; d < D; d += PIECE * WIDTH) {
            load_data(&p, d, (N - 1 - n) * D, Y + n * D, observed + (MISSING ? n * D : 0));
            load_fields(&p, d, fields, chosen, 1, setting);
            const real part = total(VACC(begin(&p, setting)));
            walk(LANES_ARG &p, &t, d == 0, RELATIVE ? part : 0, setting);
            empty += setting[0] * part;
        }
        const real zero = RELATIVE ? 0 : empty;
        const real off = !CORRECTED ? 0 : correct(LANES_ARG &t, row, offset, chosen);
        ROLLED for (int k = 0, node = 0; k < HPRIME; node += t.below[1][k++]) {
            SET(t.energy[node / WIDTH], node % WIDTH, -REAL_INF); /* of one cause: below, of all H */
            SET(t.weight[node / WIDTH], node % WIDTH, 0);
        }

        /* The peaks, and the weights of all states. */
        vec top = (vec)(ANNEALED(zero, 0)), top1 = (vec)(zero), most = (vec)(-REAL_INF);
        ROLLED for (int i = 0; i < LATENT_ROWS; i++) {
            const int h = i * WIDTH;
            const vec E = vload_row(H - h, 0, row + h, 0) + offsets[i] - off;
            single[i].v = E;
            top = VMAX(ANNEALED(E, shifts[i]), top);
            top1 = VMAX(E, top1);
        }
        ROLLED for (int i = 0; i < NODE_ROWS; i++) {
            const vec E = t.energy[i].v, none = (vec)(-REAL_INF);
            t.weight[i].v = ANNEALED(E, t.weight[i].v);
            top = VMAX(t.weight[i].v, top);
            top1 = VMAX(E, top1);
            const vec deepest = (((ivec)(t.deepest[i]) >> NUMBERS) & 1) != 0 ? E : none;
            most = VMAX(deepest, most);
        }
        const real peak = highest(top), peak1 = ANNEAL ? highest(top1) : peak;
        vec sum = (vec)(0), sum1 = (vec)(0), energies = (vec)(0);
        ROLLED for (int i = 0; i < LATENT_ROWS + NODE_ROWS; i++) {
            const int node = i - LATENT_ROWS;
            const vec E = node < 0 ? single[i].v : t.energy[node].v;
            const vec q = vexp((node < 0 ? ANNEALED(E, shifts[i]) : t.weight[node].v) - peak);
            sum += q;
            energies += q > 0 ? q * E : (vec)(0);
            if (ANNEAL)
                sum1 += vexp(E - peak1);
            if (node < 0)
                single[i].v = q;
            else
                t.weight[node].v = q;
        }
        const real zero_weight = REAL_EXP(ANNEALED(zero, 0) - peak);
        const real z = (real)total(VACC(sum)) + zero_weight;
        const real z1 = ANNEAL ? (real)total(VACC(sum1)) + REAL_EXP(zero - peak1) : z;
        const real scale = 1 / z, deepest = GAMMA > 1 ? highest(most) : peak1;
        const real mean_energy = (real)total(VACC(energies)) + (zero_weight > 0 ? zero_weight * zero : 0);
        ONCE
        {
            log_evidence[n] = peak1 + REAL_LOG(z1);
            full[n] = (real)(GAMMA > 1 ? deepest >= peak1 : peak1 > zero);
            energy[n] = scale * mean_energy;
        }
        ROLLED for (int i = 0; i < NODE_ROWS; i++) {
            t.weight[i].v *= scale;
            t.alive[i] = BITS(t.weight[i].v > SKIP);
        }
        ROLLED for (int i = 0; i < LATENT_ROWS; i++) {
            const vec q = weight * scale * single[i].v, settled = SETTLED(q);
            vstore_row(settled, H - i * WIDTH, row + i * WIDTH, 0);
            vstore_row(settled, H - i * WIDTH, activity + i * WIDTH, 0);
        }

        /* The statistics. */
        const int some = next_alive(&t, 0) < NODES;
        for (int d = 0; d < (WANTED ? D : 1); d += PIECE * WIDTH) {
            if (!some && !RECONSTRUCT)
                break;
            if (D > PIECE * WIDTH)
                load_data(&p, d, (N - 1 - n) * D, Y + n * D, observed + (MISSING ? n * D : 0));
            if (FACTORS || D > PIECE * WIDTH)
                load_fields(&p, d, fields, chosen, 0, setting);
            for (int i = 0; i < COUNT(p); i++) {
                const vec y = p.y[i], c = start(y, setting);
                p.c[0][i] = c;
                if (RECONSTRUCT)
                    p.mean[i] = zero_weight > 0 ? zero_weight * scale * value(c, y, setting) : (vec)(0);
                ROLLED for (int k = 0; k < HPRIME && STATS; k++)
                    p.A[k][i] = p.Ay[k][i] = (vec)(0);
            }
            collect(LANES_ARG &p, &t, d == 0, setting);
            if (STATS && weight != 0)
                add_piece(&p, d, &t, weight, chosen, own);
            if (RECONSTRUCT) {
                add_singletons(LANES_ARG &p, d, single, scale, fields, setting);
                for (int i = 0; i < COUNT(p); i++)
                    vstore_row(p.mean[i], D - d - i * WIDTH, reconstruction + n * D + d + i * WIDTH, 0);
            }
        }
        MEET();
        EACH_LANE(k, HPRIME)
            activity[chosen[k]] += weight * t.many[k];
    }
}
