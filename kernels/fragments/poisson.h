/* poisson.h: Poisson noise.
 *
 * term is log p(y | c) less the most that a rate could give, that of m = max(y, floor): y log (c / m) - (c - m).
 * Where a state explains the data this is of the size of 1, whatever that of the counts: sums keep their digits.
 * setting[0], [1]: 1, the floor of rates
 */
#define RELATIVE 0

DEVICE vec term(vec y, vec c, const real *setting)
{
    const vec rate = seen(c, setting), least = (vec)(setting[1]), most = VMAX(y, least);
    return y * vlog_ratio(rate, most) - (rate - most);
}

DEVICE vec value(vec c, vec y, const real *setting)
{
    return seen(c, setting);
}
