/* linear_energies.c: the energies of COUNT explicit states of each data point, by the Gram matrix.
 *
 * E_1(s) = sum_i (slope_i b_i + offset_i) - sum_{i<j} gram_ij over the active latents. A state in each work-item.
 * Groups: ceil(N / TILE). Sizes: H, WORDS (of a state), COUNT.
 */
KERNEL void linear_energies(int N, GLOBAL const real *RESTRICT b, GLOBAL const real *RESTRICT gram,
                            GLOBAL const real *RESTRICT slope, GLOBAL const real *RESTRICT offset,
                            GLOBAL const unsigned int *RESTRICT sets, GLOBAL real *RESTRICT energies)
{
    for (int n = GROUP_ID * TILE; n < N && n < (GROUP_ID + 1) * TILE; n++) {
        GLOBAL const real *mine = b + (size_t)n * H;
        for (int k = LOCAL_ID; k < COUNT; k += GROUP) {
            GLOBAL const unsigned int *state = sets + ((size_t)n * COUNT + k) * WORDS;
            real energy = 0;
            for (int v = 0; v < WORDS; v++)
                for (unsigned int bits = state[v]; bits; bits &= bits - 1) {
                    const int i = 32 * v + LOWEST_BIT(bits);
                    GLOBAL const real *row = gram + (size_t)i * H;
                    energy += slope[i] * mine[i] + offset[i];
                    for (int u = 0; u <= v; u++)
                        for (unsigned int below = u < v ? state[u] : state[v] & ~bits; below; below &= below - 1)
                            energy -= row[32 * u + LOWEST_BIT(below)];
                }
            energies[(size_t)n * COUNT + k] = energy;
        }
    }
}
