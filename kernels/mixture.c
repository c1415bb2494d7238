/* mixture.c: the E-step of a mixture whose components take one dimension by itself, and its sums.
 *
 *   joint_nk = log_weight_k - whole(sum over d of cost(y_nd, mu_kd, P_kd))      the family's fragment says what it costs
 *   r_nk     = w_n softmax_k(beta joint_nk + shift_k)
 *
 *   mu               (K, D) centres; of a family with a BASE (K + 1, D): that is the log likelihood under the last row,
 *                    to which all components are relative, so that the size of the data costs no digits
 *   P                (K, D) the family's other parameter. If MISSING, K more rows: what an observed y_d costs besides
 *   log_evidence     (N,) log sum over k of exp joint_nk, unannealed
 *   room             (tiles, K + NOTES, TILE) the log joint, then r / w times the points' scale (row K), tile by tile; one
 *                    tile for each group where all stages are one launch
 *   responsibilities (N, K) r_nk, of the stage STORE
 *   sums             (groups, SUMS) sum over n of r_nk (1, y - mu_k, second(y, y - mu_k)); a row for each group
 *
 * STAGES, bits: 1 the log joint, a product of differences; 2 the softmax; 4 the sums, a product; 8 r_nk stored. Where a
 * group has a cache it takes a tile through all of them; a GPU makes each a launch of its own. SHARE groups then divide
 * the components (1) or the sums (4) of a tile. In both products a work-item holds a few points (vectors of them, on a
 * CPU) x a few components, or components x dimensions, in registers.
 * If MISSING, NaN is no observation: it counts with its expectation, y - mu_k = 0 and, for the second moment, `unseen`.
 * Differences are taken before they are squared: float is safe wherever the data lie. Moments are summed in `real`
 * over STRETCH tiles, in `acc` beyond. The same number of groups gives the same bits.
 * Sizes: D, K, MISSING, STAGES, ANNEAL, SHARE; LARGE where it is not 0.
 */
#define STAGE(bit) ((STAGES & (bit)) != 0)
#define TILES ((N + TILE - 1) / TILE)
#define VECTORS (TILE / WIDTH)
#define PARTS 8 /* that may share a tile in stage 1, each of which leaves the largest joint it has seen */
#define NOTES (2 * PARTS + 1)
#define SCALE K                         /* row of a tile's room: TOP(0), until the softmax is done */
#define TOP(part) (K + (part))          /* largest joint */
#define HOT(part) (K + PARTS + (part))  /* and annealed, if ANNEAL */
#define BASE_ROW (K + 2 * PARTS)
#define IN_ROOM(k, v) (room + (k) * TILE + (v) * WIDTH)
#define STAGED (STAGES == 1 || STAGES == 2 || STAGES == 4 || STAGES == 8)
#define STRETCH (STAGES == 4 ? 8 : 1) /* tiles whose sums stay in registers */
#define SMALLER(a, b) ((a) < (b) ? (a) : (b))
#define LARGER(a, b) ((a) > (b) ? (a) : (b))

/* Stage 1. A work-item has ROWS vectors of points, of COLUMNS components at a time; a group BLOCK components. */
#define ROWS (VECTORS < 4 ? VECTORS : 4)
#define ACROSS (VECTORS / ROWS)
#define COLUMNS (GROUP == 1 ? 2 : LARGE ? 2 : GEM_REAL == 64 || MISSING ? SMALLER(4, (K + 7) / 8) : SMALLER(8, (K + 7) / 8))
#define BLOCK (GROUP / ACROSS * COLUMNS)
#define CHUNK (GROUP == 1 ? D : SMALLER(16, D)) /* dimensions in shared memory */
#define SIDE (GROUP == 1 ? 1 : 16)              /* work-items that copy a row */
#define PITCH (GROUP == 1 ? VECTORS : (VECTORS | 1))
#define ODD (GROUP == 1 ? CHUNK : (CHUNK | 1))

/* Stage 4. A work-item has MEMBERS components x DIMS vectors of dimensions; a group HEIGHT x WITHIN of them. */
#define CHUNKS ((D + WIDTH - 1) / WIDTH)
#define LINE (GROUP == 1 ? 1 : CHUNKS > 16 ? 16 : CHUNKS > 8 ? 8 : CHUNKS > 4 ? 4 : 2) /* work-items along dimensions */
#define DIMS (GROUP == 1 ? SMALLER(4, CHUNKS) : SMALLER(2, (CHUNKS + LINE - 1) / LINE))
#define MEMBERS (GROUP == 1 ? 1 : SMALLER(LINE < 8 ? LINE / 2 : MISSING && SECOND ? 2 : 4, (K + GROUP / LINE - 1) / (GROUP / LINE)))
#define HEIGHT (GROUP / LINE * MEMBERS)
#define WITHIN (GROUP == 1 ? (CHUNKS + DIMS - 1) / DIMS * DIMS : LINE * DIMS)
#define STEP (GROUP == 1 ? TILE : SMALLER(32, TILE)) /* points in shared memory */
#define SUM_BLOCKS ((K + HEIGHT - 1) / HEIGHT * ((CHUNKS + WITHIN - 1) / WITHIN))
#define SUMS (K + K * D * (1 + SECOND))

#if MISSING
#define OBSERVED(y, x, otherwise) ((y) == (y) ? (x) : (otherwise))
#define BESIDES(cost, i) ((cost) + P[BLOCK * ODD + (i)])
#else
#define OBSERVED(y, x, otherwise) (x)
#define BESIDES(cost, i) (cost)
#endif

typedef struct {
    int N;
    real beta;
    GLOBAL const real *Y, *mu, *shift, *weights;
    GLOBAL const fine *P, *log_weight;
    GLOBAL real *log_evidence, *responsibilities;
    GLOBAL acc *sums;
} problem;

/* y[d][n] of a tile, for the dimensions from d0 on; beyond the last data point, that once more. */
DEVICE void load_points(const problem *g, int tile, int d0, SHARED_PTR vec *y)
{
    SHARED_PTR real *at = (SHARED_PTR real *)y;
    for (int n = LOCAL_ID / SIDE; n < TILE; n += GROUP / SIDE) {
        GLOBAL const real *row = g->Y + (size_t)SMALLER(tile * TILE + n, g->N - 1) * D + d0;
        for (int d = LOCAL_ID % SIDE; d < CHUNK && d0 + d < D; d += SIDE)
            at[d * PITCH * WIDTH + n] = row[d];
    }
}

/* So many dimensions of mu and P of BLOCK components. */
DEVICE void load_parameters(const problem *g, int first, int d0, SHARED_PTR real *mu, SHARED_PTR fine *P)
{
    for (int c = LOCAL_ID / SIDE; c < BLOCK && first + c < K; c += GROUP / SIDE)
        for (int d = LOCAL_ID % SIDE; d < CHUNK && d0 + d < D; d += SIDE) {
            const size_t from = (size_t)(first + c) * D + d0 + d;
            mu[c * ODD + d] = g->mu[from];
            P[c * ODD + d] = g->P[from];
            if (MISSING)
                P[(BLOCK + c) * ODD + d] = g->P[K * D + from];
        }
}

DEVICE void log_joint(const problem *g, int tile, int part, GLOBAL real *room, SHARED_PTR vec *y, SHARED_PTR real *mu,
                      SHARED_PTR fine *P, SHARED_PTR wide *base)
{
    const int across = LOCAL_ID % ACROSS, along = LOCAL_ID / ACROSS;
    vec top[ROWS], hot[ROWS];
    for (int p = 0; p < ROWS; p++)
        top[p] = hot[p] = (vec)(-REAL_INF);
#if BASE
    for (int d0 = 0; d0 < D; d0 += CHUNK) {
        BARRIER();
        load_points(g, tile, d0, y);
        BARRIER();
        for (int v = LOCAL_ID; v < VECTORS; v += GROUP) {
            wide sum = d0 == 0 ? (wide)(0) : base[v];
            for (int d = 0; d < SMALLER(CHUNK, D - d0); d++)
                sum += log_base(WIDE(y[d * PITCH + v]), g->mu[K * D + d0 + d]);
            base[v] = sum;
            if (part == 0 && d0 + CHUNK >= D)
                VSTORE(NARROW(sum), IN_ROOM(BASE_ROW, v));
        }
    }
#endif
    for (int first = part * BLOCK; first < K; first += SHARE * BLOCK) {
        wide q[COLUMNS][ROWS];
#pragma unroll
        for (int c = 0; c < COLUMNS; c++)
#pragma unroll
            for (int p = 0; p < ROWS; p++)
                q[c][p] = (wide)(0);
        for (int d0 = 0; d0 < D; d0 += CHUNK) {
            BARRIER();
            if (CHUNK < D || first == part * BLOCK)
                load_points(g, tile, d0, y);
            load_parameters(g, first, d0, mu, P);
            BARRIER();
            for (int d = 0; d < SMALLER(CHUNK, D - d0); d++) {
                wide at[ROWS];
#pragma unroll
                for (int p = 0; p < ROWS; p++)
                    at[p] = WIDE(y[d * PITCH + across + p * ACROSS]);
#pragma unroll
                for (int c = 0; c < COLUMNS; c++) {
                    const int i = (along * COLUMNS + c) * ODD + d;
                    const real centre = mu[i];
                    const fine other = P[i];
#pragma unroll
                    for (int p = 0; p < ROWS; p++)
                        q[c][p] += OBSERVED(at[p], BESIDES(cost(at[p], centre, other), i), (wide)(0));
                }
            }
        }
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) {
            const int k = first + along * COLUMNS + c;
            if (k < K)
#pragma unroll
                for (int p = 0; p < ROWS; p++) {
                    const int v = across + p * ACROSS;
                    const wide relative = g->log_weight[k] - whole(q[c][p], g->P[(size_t)k * D]);
                    const vec joint = NARROW(LARGE ? base[v] + relative : relative);
                    VSTORE(joint, IN_ROOM(k, v));
                    top[p] = VMAX(joint, top[p]);
                    if (ANNEAL)
                        hot[p] = VMAX(g->beta * joint + g->shift[k], hot[p]);
                }
        }
    }
    SHARED_PTR vec *best = y;
    for (int annealed = 0; annealed <= ANNEAL; annealed++) { /* the largest one of each point, of all work-items */
        BARRIER();
        for (int p = 0; p < ROWS; p++)
            best[along * VECTORS + across + p * ACROSS] = annealed ? hot[p] : top[p];
        BARRIER();
        for (int v = LOCAL_ID; v < VECTORS; v += GROUP) {
            vec highest_yet = best[v];
            for (int i = 1; i < GROUP / ACROSS; i++)
                highest_yet = VMAX(best[i * VECTORS + v], highest_yet);
            VSTORE(highest_yet, IN_ROOM(annealed ? HOT(part) : TOP(part), v));
        }
    }
}

/* exp(joint - the largest), in place, of a vector of data points, and the scale that makes it r: each joint is read once.
 * What is below REAL_FAINT beside the largest is 0, which the sums skip. */
DEVICE void softmax(const problem *g, int tile, int parts, GLOBAL real *room)
{
    for (int v = LOCAL_ID; v < VECTORS; v += GROUP) {
        const int n = tile * TILE + v * WIDTH;
        vec top = VLOAD(IN_ROOM(TOP(0), v)), most = ANNEAL ? VLOAD(IN_ROOM(HOT(0), v)) : top;
        for (int i = 1; i < parts; i++) {
            top = VMAX(VLOAD(IN_ROOM(TOP(i), v)), top);
            most = ANNEAL ? VMAX(VLOAD(IN_ROOM(HOT(i), v)), most) : top;
        }
        vec sum = (vec)(0), evidence = (vec)(0);
        for (int k = 0; k < K; k++) {
            vec x = VLOAD(IN_ROOM(k, v));
            if (ANNEAL) {
                evidence += vexp(x - top);
                x = g->beta * x + g->shift[k];
            }
            x = vexp(x - most);
            sum += x;
            VSTORE(x < REAL_FAINT ? (vec)(0) : x, IN_ROOM(k, v));
        }
        evidence = top + log(ANNEAL ? evidence : sum);
        if (BASE && !LARGE)
            evidence += VLOAD(IN_ROOM(BASE_ROW, v));
        const vec weight = vload_row(g->N - n, 0, g->weights + n, 0);
        VSTORE(weight / sum, IN_ROOM(SCALE, v));
        vstore_row(evidence, g->N - n, g->log_evidence + n, 0);
    }
}

DEVICE void store(const problem *g, int tile, GLOBAL const real *room)
{
    for (int n = 0; n < SMALLER(TILE, g->N - tile * TILE); n++)
        for (int k = LOCAL_ID; k < K; k += GROUP)
            g->responsibilities[((size_t)tile * TILE + n) * K + k] = room[k * TILE + n] * room[SCALE * TILE + n];
}

/* x to the next `left` numbers of a row of sums; fresh: they have none yet. */
DEVICE void add_row(vec x, int left, int fresh, GLOBAL acc *sum)
{
    if (left >= WIDTH)
        VSTORE_ACC(fresh ? VACC(x) : VLOAD_ACC(sum) + VACC(x), sum);
    else {
        const lanes part = {x};
        for (int i = 0; i < left; i++)
            sum[i] = fresh ? part.at[i] : sum[i] + part.at[i];
    }
}

/* Add a block of the sums over the tiles from `first` to before `last`. */
DEVICE void add_moments(const problem *g, int block, int first, int last, int fresh, GLOBAL const real *room,
                        SHARED_PTR vec *y, SHARED_PTR vec *w)
{
    const int k0 = block % ((K + HEIGHT - 1) / HEIGHT) * HEIGHT, u0 = block / ((K + HEIGHT - 1) / HEIGHT) * WITHIN;
    const int lane = LOCAL_ID % LINE, own = LOCAL_ID / LINE * MEMBERS;
    SHARED_PTR const real *shares = (SHARED_PTR const real *)w;
    for (int c = 0; c < WITHIN; c += LINE * DIMS) {
        vec centre[MEMBERS][DIMS], sum[MEMBERS][DIMS], square[MEMBERS][DIMS], lack[MEMBERS][DIMS];
#pragma unroll
        for (int m = 0; m < MEMBERS; m++)
#pragma unroll
            for (int a = 0; a < DIMS; a++) {
                const int d = (u0 + c + lane + a * LINE) * WIDTH, k = k0 + own + m;
                const size_t at = (size_t)k * D + d;
                centre[m][a] = k < K ? vload_row(D - d, 0, g->mu + at, (size_t)(K - 1 - k) * D) : (vec)(0);
                sum[m][a] = square[m][a] = (vec)(0);
#if MISSING && SECOND
                lack[m][a] = k < K ? unseen(vload_row(D - d, 1, (GLOBAL const real *)g->P + at, 0)) : (vec)(0);
#endif
            }
        if (u0 + c == 0 && fresh)
            for (int k = LOCAL_ID; k < HEIGHT && k0 + k < K; k += GROUP)
                g->sums[k0 + k] = 0;
        for (int tile = first; tile < last; tile++)
            for (int n0 = 0; n0 < TILE; n0 += STEP) {
                BARRIER();
                if (STRETCH > 1 || WITHIN < CHUNKS || STEP < TILE || (c == 0 && block == 0)) /* it is not there yet */
                    for (int n = LOCAL_ID / LINE; n < STEP; n += GROUP / LINE) {
                        const int at = SMALLER(tile * TILE + n0 + n, g->N - 1);
                        for (int u = LOCAL_ID % LINE; u < WITHIN; u += LINE) {
                            const int d = (u0 + u) * WIDTH, left = D - d;
                            y[n * WITHIN + u] = vload_row(left, 0, g->Y + (size_t)at * D + d, (size_t)(g->N - 1 - at) * D);
                        }
                    }
                if (STRETCH > 1 || STEP < TILE || c == 0)
                    for (int i = LOCAL_ID; i < HEIGHT * (STEP / WIDTH); i += GROUP) {
                        const int k = k0 + i / (STEP / WIDTH), v = i % (STEP / WIDTH);
                        GLOBAL const real *r = room + (STAGED ? (size_t)tile * (K + NOTES) * TILE : 0) + n0 + v * WIDTH;
                        w[i] = k < K ? VLOAD(r + k * TILE) * VLOAD(r + SCALE * TILE) : (vec)(0);
                    }
                BARRIER();
                if (u0 + c == 0)
                    for (int k = LOCAL_ID; k < HEIGHT && k0 + k < K; k += GROUP) {
                        vec count = (vec)(0);
                        for (int v = 0; v < STEP / WIDTH; v++)
                            count += w[k * (STEP / WIDTH) + v];
                        g->sums[k0 + k] += total(VACC(count));
                    }
                for (int v = 0; v < STEP / WIDTH; v++) {
                    if (WIDTH > 1 && !SOMEWHERE(w[own * (STEP / WIDTH) + v] != (vec)(0)))
                        continue;
                    for (int i = 0; i < WIDTH; i++) {
                        real share[MEMBERS], any = 0;
#pragma unroll
                        for (int m = 0; m < MEMBERS; m++) {
                            share[m] = shares[(own + m) * STEP + v * WIDTH + i];
                            any += share[m];
                        }
                        if (any == 0)
                            continue;
#pragma unroll
                        for (int a = 0; a < DIMS; a++) { /* compilers drop `square` where SECOND is 0 */
                            const vec at = y[(v * WIDTH + i) * WITHIN + c + lane + a * LINE];
#pragma unroll
                            for (int m = 0; m < MEMBERS; m++) {
                                const vec x = OBSERVED(at, at - centre[m][a], (vec)(0));
                                sum[m][a] += share[m] * x;
                                square[m][a] += share[m] * OBSERVED(at, second(at, x), lack[m][a]);
                            }
                        }
                    }
                }
            }
#pragma unroll
        for (int m = 0; m < MEMBERS; m++)
#pragma unroll
            for (int a = 0; a < DIMS; a++) {
                const int d = (u0 + c + lane + a * LINE) * WIDTH, k = k0 + own + m;
                GLOBAL acc *moments = g->sums + K + (size_t)k * D + d;
                if (k < K && d < D) {
                    add_row(sum[m][a], D - d, fresh, moments);
                    if (SECOND)
                        add_row(square[m][a], D - d, fresh, moments + K * D);
                }
            }
    }
}

KERNEL void mixture(int N, GLOBAL const real *RESTRICT Y, GLOBAL const real *RESTRICT mu, GLOBAL const fine *RESTRICT P,
                    GLOBAL const fine *RESTRICT log_weight, real beta, GLOBAL const real *RESTRICT shift,
                    GLOBAL const real *RESTRICT weights, GLOBAL real *RESTRICT log_evidence, GLOBAL real *RESTRICT room,
                    GLOBAL real *RESTRICT responsibilities, GLOBAL acc *RESTRICT sums, real least)
{
    SHARED vec y[LARGER(LARGER(CHUNK * PITCH, GROUP / ACROSS * VECTORS), STEP * WITHIN)];
    SHARED real centres[STAGE(1) ? BLOCK * ODD : 1];
    SHARED fine others[STAGE(1) ? BLOCK * ODD * (1 + MISSING) : 1];
    SHARED wide base[VECTORS];
    SHARED vec w[STAGE(4) ? HEIGHT * (STEP / WIDTH) : 1];
    const int part = GROUP_ID % SHARE, walker = GROUP_ID / SHARE, walkers = GROUPS / SHARE;
    const problem g = {N, beta, Y, mu, shift, weights, P, log_weight, log_evidence, responsibilities,
                       sums + (size_t)walker * SUMS};
    int fresh = 1;
    for (int first = walker * STRETCH; fresh || first < TILES; first += walkers * STRETCH, fresh = 0) {
        GLOBAL real *own = room + (size_t)(STAGED ? first : walker) * (K + NOTES) * TILE;
        if (STAGE(1) && first < TILES)
            log_joint(&g, first, part, own, y, centres, others, base);
        BARRIER();
        if (STAGE(2) && first < TILES)
            softmax(&g, first, STAGED ? SMALLER(PARTS, (K + 63) / 64) : 1, own);
        BARRIER();
        if (STAGE(8) && first < TILES)
            store(&g, first, own);
        if (STAGE(4))
            for (int block = part; block < SUM_BLOCKS; block += SHARE)
                add_moments(&g, block, first, SMALLER(first + STRETCH, TILES), fresh, STAGED ? room : own, y, w);
        BARRIER();
    }
}
