/* em_step.c: what a cluster sees of EM, for SimGrid's SMPI (benchmarks/simulation/smpi.py runs it).
 *
 *     em_step SECONDS BYTES SMALL STEPS
 *
 * A step computes for SECONDS, makes SMALL reductions of one count (the bisection of the data selection), and one of
 * BYTES (the statistics). Rank 0 prints, in simulated seconds per step: all of it, the small reductions, the large one.
 */
#include <mpi.h>
#include <smpi/smpi.h>
#include <stdio.h>
#include <stdlib.h>

#define HOST 1e9 /* flop/s of a host in the platform file */

int main(int argc, char *argv[])
{
    MPI_Init(&argc, &argv);
    if (argc != 5) {
        fprintf(stderr, "usage: em_step SECONDS BYTES SMALL STEPS\n");
        return 2;
    }
    const double seconds = atof(argv[1]);
    const int bytes = atoi(argv[2]), small = atoi(argv[3]), steps = atoi(argv[4]);
    double *statistics = SMPI_SHARED_MALLOC(bytes); /* one memory for all ranks: nobody looks at the numbers */
    double *sums = SMPI_SHARED_MALLOC(bytes);
    double selection = 0, reduction = 0;
    int first = 0, rank;
    MPI_Allreduce(MPI_IN_PLACE, &first, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD); /* what a library does at first use */
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Barrier(MPI_COMM_WORLD); /* ranks do not begin together */
    const double began = MPI_Wtime();
    for (int step = 0; step < steps; step++) {
        smpi_execute_flops(seconds * HOST);
        const double computed = MPI_Wtime();
        for (int i = 0; i < small; i++) {
            long count = 1, total;
            MPI_Allreduce(&count, &total, 1, MPI_LONG, MPI_SUM, MPI_COMM_WORLD);
        }
        const double selected = MPI_Wtime();
        MPI_Allreduce(statistics, sums, bytes / 8, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD);
        selection += selected - computed;
        reduction += MPI_Wtime() - selected;
    }
    if (rank == 0)
        printf("%.9g %.9g %.9g\n", (MPI_Wtime() - began) / steps, selection / steps, reduction / steps);
    SMPI_SHARED_FREE(statistics);
    SMPI_SHARED_FREE(sums);
    MPI_Finalize();
    return 0;
}
