/* mixture_full.c: the E-step of Gaussian mixtures with covariances, and its sums, in one walk over the data.
 *
 *   joint_nk = log_weight_k - 1/2 |R_k (y_n - mu_k)|^2              P_k = R_k' R_k is the inverse covariance
 *   r_nk     = w_n softmax_k(beta joint_nk + shift_k)
 *
 *   mu               (K, D)
 *   precision        (K, D, D), or (D, D) if TIED: the lower triangle R_k, whose products have as many digits to lose as
 *                    the square root of P_k's condition has, not the condition (above the diagonal P_k, for the twin)
 *   log_evidence     (N,) log sum over k of exp joint_nk, unannealed
 *   responsibilities (N, K) r_nk, if STAGES has bit 8; bit 4: sums are wanted
 *   sums             (GROUPS, SUMS) sum over n of r_nk (1, y - mu_k, (y - mu_k) (y - mu_k)'); one row for each group; the
 *                    last part is summed over k if TIED
 *   nu               (K, D) if TIED: R (mu_k - mu_0), for CPU devices
 *   room, least      for others
 *
 * Differences are taken before they are squared: float is safe wherever the data lie. Moments are summed in
 * `real` within a tile, in `acc` over tiles. Group g takes the tiles g, g + GROUPS, ...; their number is the
 * caller's choice: the same number gives the same bits.
 * Sizes: D, K, TIED, ANNEAL, STAGES.
 */
#define STORE ((STAGES & 8) != 0)
#define SECOND (TIED ? D * D : K * D * D)
#define SUMS (K + K * D + SECOND)
#define PRECISION(k) (TIED ? 0 : (size_t)(k) * D * D) /* where R_k is */

/* Second moments are symmetric: only their lower triangles have been summed. */
DEVICE void mirror(GLOBAL acc *second)
{
    BARRIER();
    for (int e = LOCAL_ID; e < SECOND; e += GROUP) {
        const int i = e / D % D, j = e % D;
        if (j > i)
            second[e] = second[e - e % (D * D) + j * D + i];
    }
}

#if WIDTH > 1
/* ------------------------------------------------------------------------- CPU devices: vectors of lanes
 * For the log joint a data point is in each element of a vector; for the sums a dimension is. TILE is a
 * multiple of WIDTH; with 4 WIDTH enough sums are in flight. */

#define VECTORS (TILE / WIDTH)
#define CHUNKS ((D + WIDTH - 1) / WIDTH)
#define AHEAD (CHUNKS < 4 ? CHUNKS : 4) /* vectors of dimensions summed side by side */

typedef struct {
    int count; /* data points, the last one is repeated */
    lanes y[D][VECTORS];
    union {
        vec v[CHUNKS];
        real at[CHUNKS * WIDTH];
    } row[TILE]; /* the same, padded with zeros */
    lanes r[K][VECTORS]; /* log joint, then responsibilities */
} tile;

DEVICE vec load_chunk(GLOBAL const real *row, int c)
{
    return (c + 1) * WIDTH <= D ? VLOAD(row + c * WIDTH) : vload_part(D % WIDTH, 0, row + c * WIDTH);
}

/* sum[0 ... D - 1 - c WIDTH] += x */
DEVICE void add_chunk(GLOBAL acc *sum, int c, vec x)
{
    sum += c * WIDTH;
    if ((c + 1) * WIDTH <= D)
        VSTORE_ACC(VLOAD_ACC(sum) + VACC(x), sum);
    else {
        const lanes part = {x};
        for (int i = 0; i < D % WIDTH; i++)
            sum[i] += part.at[i];
    }
}

DEVICE void load_tile(tile *t, GLOBAL const real *Y)
{
    for (int n = 0; n < TILE; n++) {
        GLOBAL const real *row = Y + (size_t)(n < t->count ? n : t->count - 1) * D;
        for (int c = 0; c < CHUNKS; c++)
            t->row[n].v[c] = load_chunk(row, c);
        for (int d = 0; d < D; d++)
            t->y[d][n / WIDTH].at[n % WIDTH] = t->row[n].at[d];
    }
}

/* q[v] = 1/2 |R (y - mu)|^2, or the costs of all dimensions; P points to R */
DEVICE void distance(const tile *t, GLOBAL const real *mu, GLOBAL const real *P, vec *q)
{
#pragma unroll
    for (int v = 0; v < VECTORS; v++)
        q[v] = (vec)(0);
    vec x[D][VECTORS];
    for (int i = 0; i < D; i++) {
        vec Rx[VECTORS];
#pragma unroll
        for (int v = 0; v < VECTORS; v++) {
            x[i][v] = t->y[i][v].v - mu[i];
            Rx[v] = P[i * D + i] * x[i][v];
        }
        for (int j = 0; j < i; j++)
#pragma unroll
            for (int v = 0; v < VECTORS; v++)
                Rx[v] += P[i * D + j] * x[j][v];
#pragma unroll
        for (int v = 0; v < VECTORS; v++)
            q[v] += Rx[v] * Rx[v];
    }
#pragma unroll
    for (int v = 0; v < VECTORS; v++)
        q[v] *= (real)0.5;
}

#if TIED
/* z = R (y - mu_0), once for all components, and half the squared distance from one of them: in acc, so that components
 * that are far from mu_0 keep their digits. */
DEVICE void whiten(const tile *t, GLOBAL const real *mu, GLOBAL const real *R, accs z[D][VECTORS])
{
    accs x[D][VECTORS];
    for (int i = 0; i < D; i++) {
        accs sum[VECTORS];
#pragma unroll
        for (int v = 0; v < VECTORS; v++) {
            x[i][v] = VACC(t->y[i][v].v) - (acc)mu[i];
            sum[v] = (acc)R[i * D + i] * x[i][v];
        }
        for (int j = 0; j < i; j++)
#pragma unroll
            for (int v = 0; v < VECTORS; v++)
                sum[v] += (acc)R[i * D + j] * x[j][v];
#pragma unroll
        for (int v = 0; v < VECTORS; v++)
            z[i][v] = sum[v];
    }
}

DEVICE void distance_from(accs z[D][VECTORS], GLOBAL const acc *nu, vec *q)
{
    accs sum[VECTORS];
#pragma unroll
    for (int v = 0; v < VECTORS; v++)
        sum[v] = (accs)(0);
    for (int d = 0; d < D; d++)
#pragma unroll
        for (int v = 0; v < VECTORS; v++)
            sum[v] += (z[d][v] - nu[d]) * (z[d][v] - nu[d]);
#pragma unroll
    for (int v = 0; v < VECTORS; v++)
        q[v] = VREAL((acc)0.5 * sum[v]);
}
#endif

/* Log joint to responsibilities times weight, for the v-th vector of data points; returns log evidence. */
DEVICE vec softmax(tile *t, int v, real beta, GLOBAL const real *shift, vec weight)
{
    vec top = t->r[0][v].v, sum = (vec)(0), evidence = (vec)(0);
    for (int k = 1; k < K; k++)
        top = VMAX(t->r[k][v].v, top);
    if (ANNEAL) {
        for (int k = 0; k < K; k++)
            sum += vexp(t->r[k][v].v - top);
        evidence = top + log(sum);
        top = (vec)(-REAL_INF);
        for (int k = 0; k < K; k++) {
            t->r[k][v].v = beta * t->r[k][v].v + shift[k];
            top = VMAX(t->r[k][v].v, top);
        }
        sum = (vec)(0);
    }
    for (int k = 0; k < K; k++) {
        t->r[k][v].v = vexp(t->r[k][v].v - top);
        sum += t->r[k][v].v;
    }
    if (!ANNEAL)
        evidence = top + log(sum);
    const vec scale = weight / sum;
    for (int k = 0; k < K; k++)
        t->r[k][v].v *= scale;
    return evidence;
}


/* The data points of component k: where r is not 0, few once learned. Returns their number. */
DEVICE int members(const lanes *r, int *found)
{
    int count = 0;
    for (int v = 0; v < VECTORS; v++)
        if (SOMEWHERE(r[v].v != (vec)(0)))
            for (int i = 0; i < WIDTH; i++) {
                found[count] = v * WIDTH + i;
                count += r[v].at[i] != 0;
            }
    return count;
}

DEVICE acc tile_count(const lanes *r)
{
    vec sum = r[0].v;
#pragma unroll
    for (int v = 1; v < VECTORS; v++)
        sum += r[v].v;
    return total(VACC(sum));
}

#define BESIDE (CHUNKS < 2 ? 1 : 2) /* a block of the second moments: four rows, so many vectors of columns */
#define COLUMNS ((CHUNKS + 1) / BESIDE * BESIDE)

/* Second moments: the lower triangle, and what is in the same blocks. */
DEVICE void add_moments(const tile *t, const lanes *r, GLOBAL const real *mu, GLOBAL const real *P, const int *found,
                        int count, GLOBAL acc *first, GLOBAL acc *second)
{
    typedef union {
        vec v[COLUMNS];
        real at[COLUMNS * WIDTH];
    } padded;
    padded x[TILE], wx[TILE];
    vec sum[COLUMNS];
    for (int c = 0; c < COLUMNS; c++)
        sum[c] = (vec)(0);
    for (int c = 0; c < COLUMNS; c++) {
        const vec mean = c < CHUNKS ? load_chunk(mu, c) : (vec)(0);
        for (int f = 0; f < count; f++) {
            const int n = found[f];
            x[f].v[c] = c < CHUNKS ? t->row[n].v[c] - mean : (vec)(0);
            wx[f].v[c] = r[n / WIDTH].at[n % WIDTH] * x[f].v[c];
            sum[c] += wx[f].v[c];
        }
    }
    for (int c = 0; c < CHUNKS; c++)
        add_chunk(first, c, sum[c]);

    for (int i = 0; i < D; i += 4)
        for (int c = 0; c * WIDTH < i + 4 && c < CHUNKS; c += BESIDE) {
            vec block[4][BESIDE];
#pragma unroll
            for (int a = 0; a < 4; a++)
#pragma unroll
                for (int b = 0; b < BESIDE; b++)
                    block[a][b] = (vec)(0);
            for (int f = 0; f < count; f++)
#pragma unroll
                for (int a = 0; a < 4; a++)
#pragma unroll
                    for (int b = 0; b < BESIDE; b++)
                        block[a][b] += wx[f].at[i + a] * x[f].v[c + b];
#pragma unroll
            for (int a = 0; a < 4 && i + a < D; a++)
#pragma unroll
                for (int b = 0; b < BESIDE && c + b < CHUNKS; b++)
                    add_chunk(second + (size_t)(i + a) * D, c + b, block[a][b]);
        }
}

KERNEL void mixture_full(int N, GLOBAL const real *RESTRICT Y, GLOBAL const real *RESTRICT mu,
                    GLOBAL const real *RESTRICT precision, GLOBAL const real *RESTRICT log_weight, real beta,
                    GLOBAL const real *RESTRICT shift, GLOBAL const real *RESTRICT weights,
                    GLOBAL real *RESTRICT log_evidence, GLOBAL real *RESTRICT room,
                    GLOBAL real *RESTRICT responsibilities, GLOBAL acc *RESTRICT sums, real least,
                    GLOBAL const acc *RESTRICT nu)
{
    GLOBAL acc *counts = sums + (size_t)GROUP_ID * SUMS, *first = counts + K, *second = first + K * D;
    for (int i = 0; i < SUMS; i++)
        counts[i] = 0;

    tile t;
    for (size_t start = (size_t)GROUP_ID * TILE; start < N; start += (size_t)GROUPS * TILE) {
        t.count = N - start < TILE ? N - start : TILE;
        load_tile(&t, Y + start * D);
#if TIED
        accs z[D][VECTORS];
        whiten(&t, mu, precision, z);
#endif
        for (int k = 0; k < K; k++) {
            vec q[VECTORS];
#if TIED
            distance_from(z, nu + k * D, q);
#else
            distance(&t, mu + k * D, precision + PRECISION(k), q);
#endif
#pragma unroll
            for (int v = 0; v < VECTORS; v++)
                t.r[k][v].v = log_weight[k] - q[v];
        }
        for (int v = 0; v < VECTORS; v++) {
            const int left = t.count - v * WIDTH, here = left < WIDTH ? left : WIDTH;
            const vec weight = vload_part(here, 0, weights + start + v * WIDTH);
            vec evidence = softmax(&t, v, beta, shift, weight);
            vstore_part(evidence, here, log_evidence + start + v * WIDTH);
        }
        for (int n = 0; STORE && n < t.count; n++)
            for (int k = 0; k < K; k++)
                responsibilities[(start + n) * K + k] = t.r[k][n / WIDTH].at[n % WIDTH];
        for (int k = 0; k < K; k++) {
            int found[TILE + 1];
            const int count = members(t.r[k], found);
            if (count == 0)
                continue;
            counts[k] += tile_count(t.r[k]);
            add_moments(&t, t.r[k], mu + k * D, precision + PRECISION(k), found, count, first + k * D,
                        second + PRECISION(k));
        }
    }
    mirror(second);
}

#else
/* --------------------------------------------------------- GPUs: work-items share a tile in local memory
 * They are spread over data points and components for the log joint, over components and dimensions for the
 * sums. GROUP and TILE are powers of two, TILE <= GROUP.
 * Local memory: (TILE | 1) (D + K) reals, K ints and GROUP of type acc. */

#define PITCH (TILE | 1)             /* odd: neighbours are in different banks, by rows as by columns */
#define POINTS (TILE < 4 ? TILE : 4) /* of one component, that a work-item takes: they share mu and P */
#define APART (TILE / POINTS)

/* q[p] = 1/2 |R (y - mu)|^2, or the costs of all dimensions, of the data points y, y + APART, ...; P points to R */
DEVICE void distance(LOCAL_PTR const real *y, GLOBAL const real *mu, GLOBAL const real *P, real *q)
{
    for (int p = 0; p < POINTS; p++)
        q[p] = 0;
    for (int i = 0; i < D; i++) {
        real Rx[POINTS];
        for (int p = 0; p < POINTS; p++)
            Rx[p] = P[i * D + i] * (y[i * PITCH + p * APART] - mu[i]);
        for (int j = 0; j < i; j++)
            for (int p = 0; p < POINTS; p++)
                Rx[p] += P[i * D + j] * (y[j * PITCH + p * APART] - mu[j]);
        for (int p = 0; p < POINTS; p++)
            q[p] += (real)0.5 * Rx[p] * Rx[p];
    }
}

/* Log joint to responsibilities times weight, for this work-item's data point; returns the log evidence. */
DEVICE real softmax(LOCAL_PTR real *r, real beta, GLOBAL const real *shift, real weight,
                    LOCAL_PTR acc *scratch)
{
    real top = -REAL_INF, sum = 0, evidence = 0;
    for (int k = LANE; k < K; k += LANES)
        top = REAL_MAX(r[k * PITCH], top);
    top = lanes_max(top, scratch);
    if (ANNEAL) {
        for (int k = LANE; k < K; k += LANES)
            sum += REAL_EXP(r[k * PITCH] - top);
        evidence = top + REAL_LOG(lanes_sum(sum, scratch));
        top = -REAL_INF;
        for (int k = LANE; k < K; k += LANES) {
            r[k * PITCH] = beta * r[k * PITCH] + shift[k];
            top = REAL_MAX(r[k * PITCH], top);
        }
        top = lanes_max(top, scratch);
        sum = 0;
    }
    for (int k = LANE; k < K; k += LANES) {
        r[k * PITCH] = REAL_EXP(r[k * PITCH] - top);
        sum += r[k * PITCH];
    }
    sum = (real)lanes_sum(sum, scratch);
    if (!ANNEAL)
        evidence = top + REAL_LOG(sum);
    for (int k = LANE; k < K; k += LANES)
        r[k * PITCH] *= weight / sum;
    return evidence;
}

/* sum over the tile of r (y_i - mean_i) (y_j - mean_j); x and y are the rows i and j */
DEVICE real product(LOCAL_PTR const real *r, LOCAL_PTR const real *x, real mean_x, LOCAL_PTR const real *y,
                    real mean_y)
{
    real sum = 0;
    for (int n = 0; n < TILE; n++)
        sum += r[n] * (x[n] - mean_x) * (y[n] - mean_y);
    return sum;
}

KERNEL void mixture_full(int N, GLOBAL const real *RESTRICT Y, GLOBAL const real *RESTRICT mu,
                    GLOBAL const real *RESTRICT precision, GLOBAL const real *RESTRICT log_weight, real beta,
                    GLOBAL const real *RESTRICT shift, GLOBAL const real *RESTRICT weights,
                    GLOBAL real *RESTRICT log_evidence, GLOBAL real *RESTRICT room,
                    GLOBAL real *RESTRICT responsibilities, GLOBAL acc *RESTRICT sums, real least,
                    GLOBAL const acc *RESTRICT nu)
{
    LOCAL acc scratch[GROUP];
    LOCAL real y[D * PITCH], r[K * PITCH]; /* a row for each dimension, for each component */
    LOCAL int active[K]; /* has the component any data point of the tile? */
    GLOBAL acc *counts = sums + (size_t)GROUP_ID * SUMS, *first = counts + K, *second = first + K * D;
    for (int i = LOCAL_ID; i < SUMS; i += GROUP)
        counts[i] = 0;
    BARRIER();

    for (size_t start = (size_t)GROUP_ID * TILE; start < N; start += (size_t)GROUPS * TILE) {
        const int count = N - start < TILE ? N - start : TILE; /* the last one is repeated, with weight 0 */
        for (int i = LOCAL_ID; i < TILE * D; i += GROUP)
            y[i % D * PITCH + i / D] = Y[(start + (i / D < count ? i / D : count - 1)) * D + i % D];
        BARRIER();
        for (int i = LOCAL_ID; i < K * APART; i += GROUP) {
            const int k = i / APART, n = i % APART;
            real q[POINTS];
            distance(y + n, mu + k * D, precision + PRECISION(k), q);
            for (int p = 0; p < POINTS; p++)
                r[k * PITCH + n + p * APART] = log_weight[k] - q[p];
        }
        BARRIER();
        const int here = ROW < count;
        real evidence = softmax(r + ROW, beta, shift, here ? weights[start + ROW] : 0, scratch);
        if (here && LANE == 0)
            log_evidence[start + ROW] = evidence;
        BARRIER();
        for (int i = LOCAL_ID; STORE && i < count * K; i += GROUP)
            responsibilities[start * K + i] = r[i % K * PITCH + i / K];

        for (int k = LOCAL_ID; k < K; k += GROUP) {
            real sum = 0;
            active[k] = 0;
            for (int n = 0; n < TILE; n++) {
                sum += r[k * PITCH + n];
                active[k] |= r[k * PITCH + n] != 0;
            }
            counts[k] += sum;
        }
        BARRIER();
        for (int i = LOCAL_ID; i < K * D; i += GROUP)
            if (active[i / D]) {
                LOCAL_PTR const real *weight = r + i / D * PITCH, *row = y + i % D * PITCH;
                real sum = 0;
                for (int n = 0; n < TILE; n++)
                    sum += weight[n] * (row[n] - mu[i]);
                first[i] += sum;
            }
        for (int e = LOCAL_ID; e < SECOND; e += GROUP) {
            const int i = e / D % D, j = e % D, from = e / (D * D), to = TIED ? K : from + 1;
            real sum = 0;
            for (int k = from; k < to && j <= i; k++)
                if (active[k])
                    sum += product(r + k * PITCH, y + i * PITCH, mu[k * D + i], y + j * PITCH, mu[k * D + j]);
            if (sum != 0)
                second[e] += sum;
        }
        BARRIER();
    }
    mirror(second);
}
#endif
