/* keep_best.c: of the COUNT states of each data point and NEW found ones those of the largest energies stay, each once.
 *
 * A found state takes the place of one that goes, in their order. Work-items take states; the energies of a data point
 * and a hash of each of its states are in local memory. Groups: ceil(N / TILE). Sizes: WORDS (of a state), COUNT, NEW.
 */
#define ALL (COUNT + NEW)

DEVICE unsigned int hash_of(GLOBAL const unsigned int *state)
{
    unsigned int hash = 0;
    for (int v = 0; v < WORDS; v++) {
        hash = (hash ^ state[v]) * 0x9E3779B1u;
        hash ^= hash >> 15;
    }
    return hash;
}

DEVICE int same(GLOBAL const unsigned int *a, GLOBAL const unsigned int *b)
{
    int v = 0;
    while (v < WORDS && a[v] == b[v])
        v++;
    return v == WORDS;
}

KERNEL void keep_best(int N, int number, int last, GLOBAL const unsigned int *RESTRICT found,
                      GLOBAL const real *RESTRICT found_energies, GLOBAL unsigned int *RESTRICT sets,
                      GLOBAL real *RESTRICT energies, GLOBAL int *RESTRICT age, GLOBAL real *RESTRICT replaced)
{
    LOCAL real energy[ALL];
    LOCAL unsigned int hash[ALL];
    LOCAL int stays[ALL];
    for (int n = GROUP_ID * TILE; n < N && n < (GROUP_ID + 1) * TILE; n++) {
        const int due = age[n] < number;
        GLOBAL unsigned int *mine = sets + (size_t)n * COUNT * WORDS;
        GLOBAL const unsigned int *fresh = found + (size_t)n * NEW * WORDS;
        for (int k = LOCAL_ID; k < ALL; k += GROUP) {
            energy[k] = k < COUNT ? energies[(size_t)n * COUNT + k] : found_energies[(size_t)n * NEW + k - COUNT];
            hash[k] = hash_of(k < COUNT ? mine + (size_t)k * WORDS : fresh + (size_t)(k - COUNT) * WORDS);
        }
        BARRIER();

        real least = energy[0];
#pragma unroll 4
        for (int k = 1; k < COUNT; k++)
            least = energy[k] < least ? energy[k] : least;
        for (int k = COUNT + LOCAL_ID; k < ALL; k += GROUP) {
            GLOBAL const unsigned int *state = fresh + (size_t)(k - COUNT) * WORDS;
            int alive = due && energy[k] > least;
            for (int j = 0; alive && j < k; j++)
                if (hash[j] == hash[k])
                    alive = !same(state, j < COUNT ? mine + (size_t)j * WORDS : fresh + (size_t)(j - COUNT) * WORDS);
            stays[k] = alive;
        }
        BARRIER();

        int some = 0;
#pragma unroll 4
        for (int k = COUNT; k < ALL; k++)
            some |= stays[k];
        const int ranked = some ? ALL : 0; /* the same for all work-items */
        for (int k = COUNT + LOCAL_ID; k < ranked; k += GROUP)
            energy[k] = stays[k] ? energy[k] : -REAL_INF;
        BARRIER();
        for (int k = LOCAL_ID; k < ranked; k += GROUP) {
            int before = 0;
#pragma unroll 4
            for (int j = 0; j < ALL; j++)
                before += energy[j] > energy[k] || (energy[j] == energy[k] && j < k);
            stays[k] = before < COUNT;
        }
        BARRIER();
        for (int k = COUNT + LOCAL_ID; k < ranked; k += GROUP)
            if (stays[k]) {
                int place = -1, turn = 0, gone = 0;
#pragma unroll 4
                for (int j = COUNT; j < k; j++)
                    turn += stays[j];
#pragma unroll 4
                for (int j = 0; j < COUNT; j++) {
                    if (!stays[j] && gone == turn)
                        place = j;
                    gone += !stays[j];
                }
                if (place >= 0) { /* always, but of energies that are no numbers */
                    for (int v = 0; v < WORDS; v++)
                        mine[(size_t)place * WORDS + v] = fresh[(size_t)(k - COUNT) * WORDS + v];
                    energies[(size_t)n * COUNT + place] = energy[k];
                }
            }
        if (LOCAL_ID == 0 && due) {
            int count = 0;
#pragma unroll 4
            for (int k = COUNT; k < ALL; k++)
                count += stays[k];
            replaced[n] += count;
            if (last)
                age[n] = number;
        }
        BARRIER();
    }
}
