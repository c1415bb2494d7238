/* em_step.c: what a cluster sees of EM, for SimGrid's SMPI (benchmarks/simulation/smpi.py runs it).
 *
 *     em_step SECONDS BYTES SMALL GATHERED
 *
 * A step computes for SECONDS; selects data, if SMALL > 0, in so many reductions of one count (a bisection) and an
 * allgather of every rank's two counts (the ties); and sums BYTES of statistics. GATHERED = 0: by an Allreduce, after
 * which each rank does the same M-step. Else by a reduce-scatter, after which each rank does its part of the M-step,
 * and an allgather of the GATHERED bytes of parameters. Rank 0 prints, in simulated seconds: the step, the selection,
 * the reduction.
 */
#include <mpi.h>
#include <smpi/smpi.h>
#include <stdio.h>
#include <stdlib.h>

#define HOST 1e9 /* flop/s of a host in the platform file */
#define TIES 18 /* bytes of two counts as mpi4py's allgather sends them, after their length */

static void select_data(int small, int ranks)
{
    char *ties = SMPI_SHARED_MALLOC((size_t)TIES * ranks); /* one memory for all ranks: nobody looks at the numbers */
    for (int i = 0; i < small; i++) {
        long count = 1, total;
        MPI_Allreduce(&count, &total, 1, MPI_LONG, MPI_SUM, MPI_COMM_WORLD);
    }
    if (small) {
        char own[TIES] = {0};
        MPI_Allgather(own, sizeof(int), MPI_CHAR, ties, sizeof(int), MPI_CHAR, MPI_COMM_WORLD);
        MPI_Allgather(own, TIES, MPI_CHAR, ties, TIES, MPI_CHAR, MPI_COMM_WORLD);
    }
    SMPI_SHARED_FREE(ties);
}

static void reduce(int bytes, int gathered, int ranks)
{
    const int each = bytes / 8 / ranks + 1, part = gathered / 8 / ranks + 1;
    double *from = SMPI_SHARED_MALLOC((size_t)8 * ranks * each), *to = SMPI_SHARED_MALLOC((size_t)8 * ranks * each);
    if (gathered) {
        MPI_Reduce_scatter_block(from, to, each, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD);
        MPI_Allgather(to, part, MPI_DOUBLE, from, part, MPI_DOUBLE, MPI_COMM_WORLD);
    } else {
        MPI_Allreduce(from, to, bytes / 8, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD);
    }
    SMPI_SHARED_FREE(from);
    SMPI_SHARED_FREE(to);
}

int main(int argc, char *argv[])
{
    MPI_Init(&argc, &argv);
    if (argc != 5) {
        fprintf(stderr, "usage: em_step SECONDS BYTES SMALL GATHERED\n");
        return 2;
    }
    const double seconds = atof(argv[1]);
    int first = 0, rank, ranks;
    MPI_Allreduce(MPI_IN_PLACE, &first, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD); /* what a library does at first use */
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    MPI_Barrier(MPI_COMM_WORLD); /* ranks do not begin together */
    const double began = MPI_Wtime();
    smpi_execute_flops(seconds * HOST);
    const double computed = MPI_Wtime();
    select_data(atoi(argv[3]), ranks);
    const double selected = MPI_Wtime();
    reduce(atoi(argv[2]), atoi(argv[4]), ranks);
    if (rank == 0)
        printf("%.9g %.9g %.9g\n", MPI_Wtime() - began, selected - computed, MPI_Wtime() - selected);
    MPI_Finalize();
    return 0;
}
