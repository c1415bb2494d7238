/* weigh_states.c: log evidence at T = 1 of COUNT explicit states, their annealed weights q, and <s> under these.
 *
 * q is proportional to exp(beta E + shift |s|). Work-items take states, then words of the latents.
 * Groups: ceil(N / TILE). Sizes: H, WORDS (of a state), COUNT.
 */
KERNEL void weigh_states(int N, GLOBAL const unsigned int *RESTRICT sets, GLOBAL const real *RESTRICT energies,
                         real beta, real shift, GLOBAL real *RESTRICT log_evidence, GLOBAL real *RESTRICT weights,
                         GLOBAL real *RESTRICT mean)
{
    LOCAL real energy[COUNT];
    LOCAL real annealed[COUNT];
    for (int n = GROUP_ID * TILE; n < N && n < (GROUP_ID + 1) * TILE; n++) {
        GLOBAL const unsigned int *mine = sets + (size_t)n * COUNT * WORDS;
        for (int k = LOCAL_ID; k < COUNT; k += GROUP) {
            int size = 0;
            for (int v = 0; v < WORDS; v++)
                size += POPCOUNT(mine[(size_t)k * WORDS + v]);
            energy[k] = energies[(size_t)n * COUNT + k];
            annealed[k] = beta * energy[k] + shift * size;
        }
        BARRIER();
        real top = energy[0], peak = annealed[0];
        for (int k = 1; k < COUNT; k++) {
            top = energy[k] > top ? energy[k] : top;
            peak = annealed[k] > peak ? annealed[k] : peak;
        }
        BARRIER();
        for (int k = LOCAL_ID; k < COUNT; k += GROUP) {
            const real weight = REAL_EXP(annealed[k] - peak);
            energy[k] = REAL_EXP(energy[k] - top);
            annealed[k] = SETTLED(weight);
        }
        BARRIER();
        acc evidence = 0, sum = 0;
        for (int k = 0; k < COUNT; k++) {
            evidence += energy[k];
            sum += annealed[k];
        }
        if (LOCAL_ID == 0)
            log_evidence[n] = top + REAL_LOG(evidence);
        for (int k = LOCAL_ID; k < COUNT; k += GROUP)
            weights[(size_t)n * COUNT + k] = (real)(annealed[k] / sum);
        for (int v = LOCAL_ID; v < WORDS; v += GROUP) {
            GLOBAL real *here = mean + (size_t)n * H + 32 * v;
            for (int h = 0; h < 32 && 32 * v + h < H; h++)
                here[h] = 0;
            for (int k = 0; k < COUNT; k++)
                if (annealed[k] > 0)
                    for (unsigned int bits = mine[(size_t)k * WORDS + v]; bits; bits &= bits - 1)
                        here[LOWEST_BIT(bits)] += (real)(annealed[k] / sum);
        }
        BARRIER();
    }
}
