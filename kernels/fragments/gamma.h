/* gamma.h: gamma noise of shape k; exponential noise, where k = 1.
 *
 * term is log p(y | c) / k less the most that a mean could give, that of m = max(y, floor): log (m / c) - y (1 / c - 1 / m).
 * setting[0], [1]: k, the floor of means
 */
#define RELATIVE 0

DEVICE vec term(vec y, vec c, const real *setting)
{
    const vec mean = seen(c, setting), least = (vec)(setting[1]), most = VMAX(y, least);
    return vlog_ratio(most, mean) - y / most * ((most - mean) / mean);
}

DEVICE vec value(vec c, vec y, const real *setting)
{
    return seen(c, setting);
}
