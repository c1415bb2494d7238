/* poisson.h: the largest of the active causes' rates and a background rate, in Poisson noise.
 *
 * term is log p(y | c) less the most that a rate could give, that of m = max(y, background): y log (c / m) - (c - m).
 * Where a state explains the data this is of the size of 1, whatever that of the counts: sums keep their digits.
 * setting: 1, background
 */
#define RELATIVE 0
#define EXCLUSIVE 1
#define IMPUTED 1
#define NOTHING 0

DEVICE vec start(vec y, const real *setting)
{
    return (vec)(setting[1]);
}

DEVICE vec combine(vec c, vec w, vec y, const real *setting)
{
    return VMAX(w, c);
}

DEVICE vec term(vec y, vec c, const real *setting)
{
    const vec least = (vec)(setting[1]), most = VMAX(y, least), above = c - most, ratio = 1 + above / most;
    const vec lost = (above / most - (ratio - 1)) / ratio; /* of above / most, when 1 was added */
    return y * (2 * fabs(above) < most ? vlog(ratio) + lost : vlog(c / most)) - above;
}

DEVICE vec share(vec w, vec c, vec y, const real *setting)
{
    return w == c ? (vec)(1) : (vec)(0);
}

DEVICE vec value(vec c, vec y, const real *setting)
{
    return c;
}
