/* mixture_spherical.h: a component is Gaussian with one inverse variance P for all dimensions. */
#define BASE 0
#define SECOND 1

DEVICE wide cost(wide y, real mu, fine P)
{
    const wide x = y - mu;
    return x * x;
}

DEVICE wide whole(wide q, fine P)
{
    return ((real)0.5 * P) * q;
}

DEVICE vec second(vec y, vec x)
{
    return x * x;
}
