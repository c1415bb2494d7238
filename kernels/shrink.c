/* shrink.c: one iteration of FISTA on the lasso of each data point, 1/2 |y - W s|^2 + penalty |s|_1, all at once.
 *
 *   g     = z G - b                              the gradient at the extrapolated point z; G = W'W, b = y'W
 *   s_new = soft threshold(z - step g, step penalty)
 *   z     = s_new + momentum (s_new - s)         or s_new where z led uphill: the momentum begins again
 *
 *   zG, b      (N, H)
 *   squares    (N,) |y|^2
 *   s, z       (N, H) in place, if MOVE; z holds the point that is judged
 *   inertia    (N,) t of Nesterov's sequence, in place: 1 at the start
 *   objective  (N,) the lasso's at z
 *   gap        (N,) its duality gap at z: how far it is, at most, from the minimum. A data point whose gap is no more
 *              than tol |y|^2 when the kernel is called is done and stays; infinite at the start
 *
 * The dual point is the residual, shrunk until no |g| exceeds the penalty.
 * Groups: ceil(N / TILE). Sizes: H, MOVE.
 */
#define NEXT(t) (((real)1 + sqrt((real)1 + 4 * (t) * (t))) / 2)

/* Objective and gap, from |y|^2, z'b, z'Gz, |z|_1 and the largest |g|. Rounding may leave no square; NaN stays. */
DEVICE void judge(acc yy, acc zb, acc zGz, acc l1, acc steepest, acc penalty, GLOBAL real *objective, GLOBAL real *gap)
{
    const acc rest = yy - 2 * zb + zGz;
    const acc rr = rest < 0 ? 0 : rest, scale = steepest > penalty ? penalty / steepest : 1;
    const acc primal = rr / 2 + penalty * l1, dual = scale * (yy - zb) - scale * scale * rr / 2;
    *objective = (real)primal;
    *gap = (real)(primal - dual);
}

#if WIDTH > 1
/* ------------------------------------------------------------------------- CPU devices: vectors of latents */

#define CHUNKS ((H + WIDTH - 1) / WIDTH)

DEVICE vec load(GLOBAL const real *row, int c)
{
    return (c + 1) * WIDTH <= H ? VLOAD(row + c * WIDTH) : vload_part(H % WIDTH, 0, row + c * WIDTH);
}

DEVICE void store(vec x, GLOBAL real *row, int c)
{
    if ((c + 1) * WIDTH <= H)
        VSTORE(x, row + c * WIDTH);
    else
        vstore_part(x, H % WIDTH, row + c * WIDTH);
}

KERNEL void shrink(int N, GLOBAL const real *RESTRICT zG, GLOBAL const real *RESTRICT b,
                   GLOBAL const real *RESTRICT squares, real step, real penalty, real tol, GLOBAL real *RESTRICT s,
                   GLOBAL real *RESTRICT z, GLOBAL real *RESTRICT inertia, GLOBAL real *RESTRICT objective,
                   GLOBAL real *RESTRICT gap)
{
    for (int n = GROUP_ID * TILE; n < N && n < (GROUP_ID + 1) * TILE; n++) {
        if (MOVE && gap[n] <= tol * squares[n])
            continue;
        GLOBAL const real *zG_n = zG + (size_t)n * H, *b_n = b + (size_t)n * H;
        GLOBAL real *s_n = s + (size_t)n * H, *z_n = z + (size_t)n * H;
        const real threshold = step * penalty;
        vec moved[CHUNKS], zb = (vec)(0), zGz = (vec)(0), l1 = (vec)(0), steepest = (vec)(0), uphill = (vec)(0);
        for (int c = 0; c < CHUNKS; c++) {
            const vec x = load(z_n, c), Gx = load(zG_n, c), bx = load(b_n, c), g = Gx - bx;
            zb += x * bx;
            zGz += x * Gx;
            l1 += fabs(x);
            steepest = VMAX(fabs(g), steepest);
            const vec u = x - step * g, size = fabs(u) - threshold;
            moved[c] = size > (vec)(0) ? copysign(size, u) : (vec)(0);
            if (MOVE)
                uphill += (x - moved[c]) * (moved[c] - load(s_n, c));
        }
        judge(squares[n], total(VACC(zb)), total(VACC(zGz)), total(VACC(l1)), highest(steepest), penalty, objective + n,
              gap + n);
        if (!MOVE)
            continue;
        const real t = total(VACC(uphill)) > 0 ? 1 : inertia[n], next = NEXT(t), momentum = (t - 1) / next;
        inertia[n] = next;
        for (int c = 0; c < CHUNKS; c++) {
            store(moved[c] + momentum * (moved[c] - load(s_n, c)), z_n, c);
            store(moved[c], s_n, c);
        }
    }
}

#else
/* ------------------------------------------------------------------- GPUs: the work-items of a data point */

DEVICE real shrunk(real z, real g, real step, real threshold)
{
    const real u = z - step * g, size = fabs(u) - threshold;
    return size > 0 ? (u > 0 ? size : -size) : 0;
}

KERNEL void shrink(int N, GLOBAL const real *RESTRICT zG, GLOBAL const real *RESTRICT b,
                   GLOBAL const real *RESTRICT squares, real step, real penalty, real tol, GLOBAL real *RESTRICT s,
                   GLOBAL real *RESTRICT z, GLOBAL real *RESTRICT inertia, GLOBAL real *RESTRICT objective,
                   GLOBAL real *RESTRICT gap)
{
    LOCAL acc scratch[GROUP];
    const int inside = GROUP_ID * TILE + ROW < N, n = inside ? GROUP_ID * TILE + ROW : 0;
    const int busy = inside && !(MOVE && gap[n] <= tol * squares[n]);
    const real t = inside ? inertia[n] : 1, threshold = step * penalty;
    const size_t row = (size_t)n * H;
    real zb = 0, zGz = 0, l1 = 0, steepest = 0, uphill = 0;
    for (int h = LANE; h < H && busy; h += LANES) {
        const real x = z[row + h], g = zG[row + h] - b[row + h], to = shrunk(x, g, step, threshold);
        zb += x * b[row + h];
        zGz += x * zG[row + h];
        l1 += fabs(x);
        steepest = REAL_MAX(fabs(g), steepest);
        if (MOVE)
            uphill += (x - to) * (to - s[row + h]);
    }
    /* Behind these barriers every lane has read gap and inertia. */
    const acc sum_b = lanes_sum(zb, scratch), sum_G = lanes_sum(zGz, scratch), sum_1 = lanes_sum(l1, scratch);
    const acc up = lanes_sum(uphill, scratch);
    steepest = lanes_max(steepest, scratch);
    if (!busy)
        return;
    if (LANE == 0)
        judge(squares[n], sum_b, sum_G, sum_1, steepest, penalty, objective + n, gap + n);
    if (!MOVE)
        return;
    const real from = up > 0 ? 1 : t, next = NEXT(from), momentum = (from - 1) / next;
    if (LANE == 0)
        inertia[n] = next;
    for (int h = LANE; h < H; h += LANES) {
        const real to = shrunk(z[row + h], zG[row + h] - b[row + h], step, threshold);
        z[row + h] = to + momentum * (to - s[row + h]);
        s[row + h] = to;
    }
}
#endif
