/* mixture_poisson.h: a component is Poisson in each dimension, of rate mu; P is the log of it beside the base's rate.
 *
 * log Poisson(y; rate) by Stirling's series for z = y + 1, or for y + 9 where y is small: log y! is that less
 * log((y + 1) ... (y + 8)). The large terms of y log rate - rate - log y! are taken together first.
 */
#define BASE 1
#define SECOND 0

DEVICE wide cost(wide y, real mu, fine P)
{
    return -P * y;
}

DEVICE wide whole(wide q, fine P)
{
    return q;
}

DEVICE vec second(vec y, vec x)
{
    return x;
}

DEVICE wide log_base(wide y, fine rate)
{
    const wide one = (wide)(1), none = (wide)(0);
    const wide z = y + (y < (fine)8 ? 9 * one : one), u = one / z, u2 = u * u;
    const wide a = y * (y + (fine)9), b = a + (fine)8, c = a + (fine)14, d = a + (fine)18, e = a + (fine)20;
    const wide up = y < (fine)8 ? b * c * d * e : one; /* (y + 1) (y + 8), (y + 2) (y + 7), ... */
    const wide series = u * ((fine)(1. / 12) - u2 * ((fine)(1. / 360) - u2 * ((fine)(1. / 1260) - u2 / (fine)1680)));
    const wide log_p = y * log(rate / z) + (z - rate) - (z - y - (fine)0.5) * log(z) + log(up) - series;
    const wide counted = ((y >= (fine)0) & (y == floor(y))) ? log_p - (fine)0.91893853320467274 : -(fine)REAL_INF * one;
    return MISSING ? (y == y ? counted : none) : counted;
}
