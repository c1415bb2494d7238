"""EM past this machine: em_step.c under SimGrid's SMPI, on a cluster described by its published sizes."""
