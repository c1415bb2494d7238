/* gaussian.h: Gaussian noise. setting[0]: -1 / 2 sigma^2 */
#define RELATIVE 1

DEVICE vec term(vec y, vec c, const real *setting)
{
    const vec difference = y - seen(c, setting);
    return difference * difference;
}

DEVICE vec value(vec c, vec y, const real *setting)
{
    return seen(c, setting);
}
