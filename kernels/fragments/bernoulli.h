/* bernoulli.h: y is 1 or 0. What is combined are the odds of 1: so both probabilities keep all their digits.
 *
 * term is log p(y | c), less that of y = 0 where no cause is active: of entries that are not there it is 0.
 * It is at least the logarithm of the smallest normal number: finite, since it is multiplied by 0 where y is missing.
 * setting[0], [1]: 1, the odds where no cause is active
 */
#define RELATIVE 0 /* to no cause, which may be impossible where y = 1 */
#if GEM_REAL == 64
#define LEAST_NORMAL 2.2250738585072014e-308
#else
#define LEAST_NORMAL 1.17549435e-38f
#endif

DEVICE vec term(vec y, vec c, const real *setting)
{
    const vec odds = seen(c, setting), one = (vec)(1), least = (vec)(LEAST_NORMAL);
    const vec chance = (1 + setting[1]) * (y > 0 ? odds : one) / (1 + odds);
    return vlog(VMAX(least, chance));
}

DEVICE vec value(vec c, vec y, const real *setting)
{
    const vec odds = seen(c, setting);
    return odds / (1 + odds);
}
