/* noisyor.h: each active cause switches y on with probability p, independently of the others.
 *
 * Fields and combined values are odds, of p and of P = 1 - prod (1 - p): as 1 + odds is 1 / (1 - p), these are
 * multiplied, and P and 1 - P keep all their digits. share is (1 - P) / P.
 */
#define EXCLUSIVE 0
#define IMPUTED 0
#define NOTHING 0
#if GEM_REAL == 64
#define MOST_ODDS 1e300
#else
#define MOST_ODDS 1e37f
#endif

DEVICE vec start(vec y, const real *setting)
{
    return (vec)(setting[1]);
}

DEVICE vec combine(vec c, vec w, vec y, const real *setting)
{
    const vec odds = c * w + (c + w), most = (vec)(MOST_ODDS);
    return odds < most ? odds : most;
}

DEVICE vec share(vec w, vec c, vec y, const real *setting)
{
    return 1 / c;
}

DEVICE vec seen(vec c, const real *setting)
{
    return c;
}

/* With Bernoulli noise probabilities of what was observed are multiplied, not their logarithms added: that of c and one
 * more cause is times(w) (that of c) + plus(w, y). */
#define FACTORS 1

DEVICE vec factor(vec y, const real *setting)
{
    const vec one = (vec)(1), odds = (vec)(setting[1]);
    return y > 0 ? odds : one;
}

DEVICE vec times(vec w)
{
    return 1 / (1 + w);
}

DEVICE vec plus(vec w, vec y, const real *setting)
{
    const vec none = (vec)(0);
    return y > 0 ? (1 + setting[1]) * w / (1 + w) : none;
}
