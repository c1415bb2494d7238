/* sample_states.c: new states; in the first PRIOR of each data point each latent is on with probability pi, in the
 * others with probability mean[n, h].
 *
 * A state in each work-item, then four. Groups: ceil(N / TILE). Sizes: H, WORDS (of a state), COUNT, PRIOR.
 */
#define STAGE (1 << 16)

KERNEL void sample_states(int N, int number, real pi, GLOBAL const unsigned int *RESTRICT keys,
                          GLOBAL const real *RESTRICT mean, GLOBAL unsigned int *RESTRICT drawn)
{
    const real rate = log1p(-pi);
    for (int n = GROUP_ID * TILE; n < N && n < (GROUP_ID + 1) * TILE; n++) {
        const unsigned int k0 = keys[2 * (size_t)n], k1 = keys[2 * (size_t)n + 1];
        GLOBAL unsigned int *mine = drawn + (size_t)n * COUNT * WORDS;
        for (int k = LOCAL_ID; k < COUNT; k += GROUP)
            for (int v = 0; v < WORDS; v++)
                mine[(size_t)k * WORDS + v] = 0;
        BARRIER();
        for (int k = LOCAL_ID; k < PRIOR; k += GROUP) {
            random_bits bits;
            for (int turn = 0, at = pi > 0 ? -1 : H; at < H; turn++) {
                if (turn % 4 == 0)
                    bits = philox(k0, k1, number, STAGE, k, turn / 4);
                const real jump = REAL_LOG(UNIFORM(bits.at[turn % 4])) / rate;
                at += 1 + (jump < H ? (int)jump : H);
                if (at < H)
                    mine[(size_t)k * WORDS + at / 32] |= 1u << (at % 32);
            }
        }
        for (int block = LOCAL_ID; PRIOR + 4 * block < COUNT; block += GROUP)
            for (int h = 0; h < H; h++) {
                const real chance = mean[(size_t)n * H + h];
                if (!(chance > 0))
                    continue;
                const random_bits bits = philox(k0, k1, number, STAGE + 1, block, h);
                for (int i = 0; i < 4 && PRIOR + 4 * block + i < COUNT; i++)
                    if (UNIFORM(bits.at[i]) < chance)
                        mine[(size_t)(PRIOR + 4 * block + i) * WORDS + h / 32] |= 1u << (h % 32);
            }
    }
}
