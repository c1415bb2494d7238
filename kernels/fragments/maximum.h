/* maximum.h: only the largest of the active causes is seen, or the floor. Fields are not negative.
 *
 * setting[1]: the floor, which is seen where no cause exceeds it
 */
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

DEVICE vec share(vec w, vec c, vec y, const real *setting)
{
    return w == c ? (vec)(1) : (vec)(0);
}

DEVICE vec seen(vec c, const real *setting)
{
    return c;
}
