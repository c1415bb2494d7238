/* smooth_maximum.h: |c|^rho sign c is the sum of the active causes' |w|^rho sign w.
 *
 * Powers of rho = 21 leave the range of a float: so fields and combined values are logarithms with a sign. x has
 * the number -rho log2(|x| / scale) > 0, with the sign of x in front; `scale` is above all that causes can combine to.
 * setting[1], [2], [3]: 1 / rho, scale, whether there are signs
 */
#define EXCLUSIVE 0
#define IMPUTED 1
#define NOTHING 1e30f /* a logarithm of 0 */

DEVICE vec start(vec y, const real *setting)
{
    return (vec)(NOTHING);
}

DEVICE vec combine(vec c, vec w, vec y, const real *setting)
{
    const vec a = fabs(c), b = fabs(w), near = a > b ? b : a, far = a > b ? a : b;
    const vec small = vexp2(near - far);
    if (setting[3] == 0)
        return near - vlog2_1p(small);
    const vec sum = near - vlog(1 + ((c < 0) == (w < 0) ? small : -small)) * (real)1.4426950408889634;
    const vec kept = sum < NOTHING ? sum : (vec)(NOTHING);
    return (a > b ? w : c) < 0 ? -kept : kept;
}

DEVICE vec seen(vec c, const real *setting)
{
    const vec x = setting[2] * vexp2(-setting[1] * fabs(c));
    return c < 0 ? -x : x;
}

/* (|w| / |c|)^(rho - 1), at most 1 */
DEVICE vec share(vec w, vec c, vec y, const real *setting)
{
    const vec ratio = fabs(c) - fabs(w);
    return vexp2((1 - setting[1]) * (ratio < 0 ? ratio : (vec)(0)));
}
