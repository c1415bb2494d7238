/* mixture_gaussian.h: a component is Gaussian in each dimension, of mean mu and inverse variance P. */
#define BASE 0
#define SECOND 1

DEVICE wide cost(wide y, real mu, fine P)
{
    const wide x = y - mu;
    return x * ((real)0.5 * P) * x;
}

DEVICE wide whole(wide q, fine P)
{
    return q;
}

DEVICE vec second(vec y, vec x)
{
    return x * x;
}

DEVICE vec unseen(vec P)
{
    return (real)1 / P;
}
