"""Benchmarks: each script prints the figures it names; timings are medians, compared within one process."""
