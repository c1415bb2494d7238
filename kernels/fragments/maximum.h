/* maximum.h: only the largest of the active causes is seen, in Gaussian noise (MCA). Fields are not negative.
 *
 * setting: -1 / 2 sigma^2
 */
#define RELATIVE 1
#define EXCLUSIVE 1
#define IMPUTED 1
#define NOTHING 0

DEVICE vec start(vec y, const real *setting)
{
    return (vec)(0);
}

DEVICE vec combine(vec c, vec w, vec y, const real *setting)
{
    return VMAX(w, c);
}

DEVICE vec term(vec y, vec c, const real *setting)
{
    return (y - c) * (y - c);
}

DEVICE vec share(vec w, vec c, vec y, const real *setting)
{
    return w == c ? (vec)(1) : (vec)(0);
}

DEVICE vec value(vec c, vec y, const real *setting)
{
    return c;
}
