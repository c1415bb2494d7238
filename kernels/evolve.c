/* evolve.c: new states from old ones: PARENTS of the COUNT of a pool are drawn, and have CHILDREN mutants each.
 *
 * A parent waits for an exponential time whose rate is its weight, and the first ones are drawn. Work-items take states
 * of the pool, then children. Groups: ceil(N / TILE).
 * Sizes: H, WORDS (of a state), COUNT, PARENTS, CHILDREN; MUTATION 0: each child of a parent has another latent
 * flipped, 1: two on an average, 2: the head of one parent and the tail of another; FIT: weights by energies, or all
 * alike.
 */
#define FLIPS ((real)(H < 2 ? H : 2))
#define FLIP(state, h) ((state)[(h) / 32] ^= 1u << ((h) % 32))
#define MADE (PARENTS * CHILDREN)

KERNEL void evolve(int N, int number, int generation, real kappa, GLOBAL const unsigned int *RESTRICT keys,
                   GLOBAL const unsigned int *RESTRICT pool, GLOBAL const real *RESTRICT energies,
                   GLOBAL unsigned int *RESTRICT children)
{
    LOCAL real wait[COUNT];
    LOCAL int parent[PARENTS];
#if MUTATION == 0
    LOCAL int flip[MADE];
#endif
    const int stage = 2 * generation + 1;
    for (int n = GROUP_ID * TILE; n < N && n < (GROUP_ID + 1) * TILE; n++) {
        const unsigned int k0 = keys[2 * (size_t)n], k1 = keys[2 * (size_t)n + 1];
        GLOBAL const unsigned int *old = pool + (size_t)n * COUNT * WORDS;
        GLOBAL const real *energy = energies + (size_t)n * COUNT;
        real least = 0;
#if FIT
        for (int k = 0; k < COUNT; k++)
            least = energy[k] < least ? energy[k] : least;
#endif
        for (int block = LOCAL_ID; 4 * block < COUNT; block += GROUP) {
            const random_bits bits = philox(k0, k1, number, 2 * generation, block, 0);
            for (int i = 0, k = 4 * block; i < 4 && k < COUNT; i++, k++) {
                real time = -REAL_LOG(UNIFORM(bits.at[i]));
#if FIT
                time /= energy[k] - 2 * least;
#endif
                wait[k] = time >= 0 ? time : REAL_INF; /* 0 / 0 */
            }
        }
        BARRIER();
        for (int k = LOCAL_ID; k < COUNT; k += GROUP) {
            int before = 0;
            for (int j = 0; j < COUNT; j++)
                before += wait[j] < wait[k] || (wait[j] == wait[k] && j < k);
            if (before < PARENTS)
                parent[before] = k;
        }
        BARRIER();

#if MUTATION == 0
        for (int p = LOCAL_ID; p < PARENTS; p += GROUP) {
            int taken[CHILDREN]; /* ascending */
            random_bits bits;
            for (int c = 0; c < CHILDREN; c++) {
                if (c % 4 == 0)
                    bits = philox(k0, k1, number, stage, p, c / 4);
                int at = (int)MUL_HIGH(bits.at[c % 4], (unsigned int)(H - c)), place = 0;
                while (place < c && at >= taken[place]) {
                    at++;
                    place++;
                }
                for (int i = c; i > place; i--)
                    taken[i] = taken[i - 1];
                taken[place] = at;
                flip[p * CHILDREN + c] = at;
            }
        }
        BARRIER();
#endif
        for (int m = LOCAL_ID; m < MADE; m += GROUP) {
            GLOBAL unsigned int *child = children + ((size_t)n * MADE + m) * WORDS;
            GLOBAL const unsigned int *first = old + (size_t)parent[m / CHILDREN] * WORDS;
#if MUTATION == 0
            for (int v = 0; v < WORDS; v++)
                child[v] = first[v];
            FLIP(child, flip[m]);
#elif MUTATION == 1
            int size = 0;
            for (int v = 0; v < WORDS; v++) {
                child[v] = first[v];
                size += POPCOUNT(first[v]);
            }
            real more = kappa - size;
            more = more > FLIPS ? FLIPS : more < -FLIPS ? -FLIPS : more;
            const real on = (FLIPS - more) / (2 * size);
            for (int v = 0; v < WORDS; v++)
                for (unsigned int bits = first[v]; bits; bits &= bits - 1) {
                    const int h = 32 * v + LOWEST_BIT(bits);
                    if (UNIFORM(philox(k0, k1, number, stage, m, h | 1 << 16).at[0]) < on)
                        FLIP(child, h);
                }
            const real off = (FLIPS + more) / (2 * (H - size)); /* of no latent that is off it is not looked at */
            const real rate = log1p(off < 1 ? -off : (real)-1);
            random_bits bits;
            for (int turn = 0, at = size < H && off > 0 ? -1 : H; at < H; turn++) {
                if (turn % 4 == 0)
                    bits = philox(k0, k1, number, stage, m, turn / 4);
                const real jump = REAL_LOG(UNIFORM(bits.at[turn % 4])) / rate;
                at += 1 + (jump < H ? (int)jump : H);
                if (at < H && !(first[at / 32] >> (at % 32) & 1))
                    FLIP(child, at);
            }
#else
            const int i = m / CHILDREN, other = m % CHILDREN, j = other < i ? other : other + 1;
            const unsigned int pair = (i < j ? i : j) * PARENTS + (i < j ? j : i);
            const int cut = 1 + (int)MUL_HIGH(philox(k0, k1, number, stage, pair, 0).at[0], (unsigned int)(H - 1));
            GLOBAL const unsigned int *second = old + (size_t)parent[j] * WORDS;
            for (int v = 0; v < WORDS; v++) {
                const int head = cut - 32 * v;
                const unsigned int mask = head <= 0 ? 0u : head >= 32 ? ~0u : (1u << head) - 1u;
                child[v] = (first[v] & mask) | (second[v] & ~mask);
            }
            FLIP(child, (int)MUL_HIGH(philox(k0, k1, number, stage, m, 1).at[0], (unsigned int)H));
#endif
        }
        BARRIER();
    }
}
