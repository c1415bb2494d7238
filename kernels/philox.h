/* philox.h: random numbers by counter, Philox 4x32-10 (Salmon et al., SC 2011): see philox.py. */
typedef struct {
    unsigned int at[4];
} random_bits;

DEVICE random_bits philox(unsigned int k0, unsigned int k1, unsigned int c0, unsigned int c1, unsigned int c2,
                          unsigned int c3)
{
    for (int turn = 0; turn < 10; turn++) {
        const unsigned int high0 = MUL_HIGH(0xD2511F53u, c0), high1 = MUL_HIGH(0xCD9E8D57u, c2);
        const unsigned int low0 = 0xD2511F53u * c0, low1 = 0xCD9E8D57u * c2;
        c0 = high1 ^ c1 ^ k0;
        c1 = low1;
        c2 = high0 ^ c3 ^ k1;
        c3 = low0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    const random_bits bits = {{c0, c1, c2, c3}};
    return bits;
}

#define UNIFORM(bits) (((real)(bits) + (real)0.5) * (real)(1.0 / 4294967296.0))
