/* magnitude.h: only the active cause of largest magnitude is seen. */
#define EXCLUSIVE 1
#define IMPUTED 1
#define NOTHING 0

DEVICE vec start(vec y, const real *setting)
{
    return (vec)(0);
}

DEVICE vec combine(vec c, vec w, vec y, const real *setting)
{
    return fabs(w) > fabs(c) ? w : c;
}

DEVICE vec share(vec w, vec c, vec y, const real *setting)
{
    return w == c ? (vec)(1) : (vec)(0);
}

DEVICE vec seen(vec c, const real *setting)
{
    return c;
}
