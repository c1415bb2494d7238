/* preselected_states.c: state m of a data point has those of its candidates on whose bits are in masks[m].
 *
 * A state in each work-item. Groups: ceil(N / TILE). Sizes: HPRIME, WORDS (of a state), COUNT.
 */
KERNEL void preselected_states(int N, GLOBAL const int *RESTRICT candidates, GLOBAL const unsigned int *RESTRICT masks,
                               GLOBAL unsigned int *RESTRICT sets)
{
    for (int n = GROUP_ID * TILE; n < N && n < (GROUP_ID + 1) * TILE; n++) {
        GLOBAL const int *chosen = candidates + (size_t)n * HPRIME;
        for (int k = LOCAL_ID; k < COUNT; k += GROUP) {
            GLOBAL unsigned int *state = sets + ((size_t)n * COUNT + k) * WORDS;
            for (int v = 0; v < WORDS; v++)
                state[v] = 0;
            for (unsigned int bits = masks[k]; bits; bits &= bits - 1) {
                const int h = chosen[LOWEST_BIT(bits)];
                state[h / 32] |= 1u << (h % 32);
            }
        }
    }
}
