/* noisyor.h: each active cause switches y on with probability w, independently of the others.
 *
 * A field holds w where w <= 1/2, else w - 1, which is negative: both w and 1 - w keep all their digits.
 * Combined is the probability of what was observed: 1 - prod (1 - w) where y = 1, prod (1 - w) where y = 0.
 * share is P / (1 - P), P = prod (1 - w).
 * term is at least the logarithm of the smallest normal number: finite, since it is multiplied by 0 where y is missing.
 * What is that improbable has no weight either way, as w is at least 1e-5: some cause always explains y = 1 better.
 * setting: 1
 */
#define RELATIVE 0 /* to no cause, which cannot be where y = 1 */
#define EXCLUSIVE 0
#define IMPUTED 0
#define NOTHING 0
#if GEM_REAL == 64
#define LEAST_NORMAL 2.2250738585072014e-308
#else
#define LEAST_NORMAL 1.17549435e-38f
#endif

DEVICE vec start(vec y, const real *setting)
{
    return 1 - y;
}

DEVICE vec combine(vec c, vec w, vec y, const real *setting)
{
    const vec off = w < 0 ? -w : 1 - w, on = w < 0 ? 1 + w : w;
    return c * off + y * on;
}

DEVICE vec term(vec y, vec c, const real *setting)
{
    const vec least = (vec)(LEAST_NORMAL);
    return vlog(VMAX(least, c)); /* a NaN stays one */
}

DEVICE vec share(vec w, vec c, vec y, const real *setting)
{
    const vec off = y > 0 ? 1 - c : c;
    return off / (y > 0 ? c : 1 - c);
}

DEVICE vec value(vec c, vec y, const real *setting)
{
    return y > 0 ? c : 1 - c;
}
