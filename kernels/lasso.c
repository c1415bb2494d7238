/* lasso.c: the minimum of 1/2 |y - W s|^2 + penalty |s|_1 for each data point, by coordinate descent.
 *
 * s_h moves to its minimum beside the others, one latent after the other; c = W'(y - W s) follows by a row of G = W'W.
 * Only those are visited that are active or whose |c_h| is above the penalty, and at least ENTRY of the largest |c_h|
 * before the sweep: who comes in early and by mistake has to leave again.
 *
 *   b          (N, H) y'W
 *   squares    (N,) |y|^2
 *   gram       (H, PITCH) G, PITCH a multiple of 32: its rows end in zeros
 *   inverse    (H,) 1 / G_hh, or 0: then s_h is 0
 *   sought     the penalty
 *   told       the penalty of the objective that is told
 *   tol        a data point is done when its duality gap is no more than tol |y|^2: it is no farther from the minimum.
 *              The dual point is the residual, shrunk until no |c_h| exceeds the penalty
 *   sweeps     at the most
 *   s          (N, H) out
 *   objective  (N,) out: with `told` in place of the penalty
 *   unfound    (N,) out: 1 where the sweeps were too few, else 0
 *
 * Lanes have their parts of a data point's row; a warp takes WIDTH data points, one after the other.
 * Sizes: H, PITCH.
 */
#define CHUNKS ((H + WIDTH - 1) / WIDTH)
#define ENTRY ((real)0.7)

KERNEL void lasso(int N, GLOBAL const real *RESTRICT b, GLOBAL const real *RESTRICT squares,
                  GLOBAL const real *RESTRICT gram, GLOBAL const real *RESTRICT inverse, real sought, real told,
                  real tol, int sweeps, GLOBAL real *RESTRICT s, GLOBAL real *RESTRICT objective,
                  GLOBAL real *RESTRICT unfound)
{
    LANES_BEGIN;
    for (int r = 0; r < WIDTH && WARP * WIDTH + r < N; r++) {
        const int n = WARP * WIDTH + r;
        const size_t row = (size_t)n * H, after = (size_t)(N - 1 - n) * H;
        lanes c[CHUNKS], x[CHUNKS];
        vec steepest = (vec)(0);
        for (int k = 0; k < CHUNKS; k++) {
            c[k].v = vload_row(H - k * WIDTH, 0, b + row + k * WIDTH, after);
            x[k].v = (vec)(0);
            steepest = VMAX(fabs(c[k].v), steepest);
        }
        real far = highest(steepest);
        acc rr, l1;
        int left = sweeps, short_of = 1;
        while (left-- > 0 && short_of) {
            const real entry = REAL_MAX(sought, far * ENTRY);
            for (int k = 0; k < CHUNKS; k++)
                for (int some = BITS((fabs(c[k].v) > entry) | (x[k].v != 0)); some; some &= some - 1) {
                    const int lane = LOWEST_BIT(some), h = k * WIDTH + lane;
                    GLOBAL const real *G = gram + (size_t)h * PITCH;
                    const real old = AT(x[k], lane), u = AT(c[k], lane) + G[h] * old, size = fabs(u) - sought;
                    const real next = size > 0 ? (u > 0 ? size : -size) * inverse[h] : 0, by = next - old;
                    SET(x[k], lane, next);
                    for (int i = 0; i < CHUNKS; i++)
                        c[i].v -= by * VLOAD(G + i * WIDTH);
                }
            vec xb = (vec)(0), xc = (vec)(0), sizes = (vec)(0);
            steepest = (vec)(0);
            for (int k = 0; k < CHUNKS; k++) {
                xb += x[k].v * vload_row(H - k * WIDTH, 0, b + row + k * WIDTH, after);
                xc += x[k].v * c[k].v;
                sizes += fabs(x[k].v);
                steepest = VMAX(fabs(c[k].v), steepest);
            }
            far = highest(steepest);
            const acc yy = squares[n], yWs = total(VACC(xb)), rest = yy - yWs - total(VACC(xc));
            const acc scale = far > sought ? sought / far : 1;
            rr = rest < 0 ? 0 : rest; /* |y - W s|^2: rounding may leave none; NaN stays */
            l1 = total(VACC(sizes));
            const acc primal = rr / 2 + sought * l1, dual = scale * (yy - yWs) - scale * scale * rr / 2;
            short_of = !(primal - dual <= tol * yy);
        }
        for (int k = 0; k < CHUNKS; k++)
            vstore_row(x[k].v, H - k * WIDTH, s + row + k * WIDTH, after);
        ONCE objective[n] = (real)(rr / 2 + told * l1);
        ONCE unfound[n] = short_of;
    }
}
