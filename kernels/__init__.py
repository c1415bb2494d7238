"""Device code and its numpy twins: `NAME.c` is the kernel for OpenCL and CUDA, `NAME.py` says the same in numpy.

Floor 0: nothing here imports from the floors above. A twin is one function of the kernel's name; positional
arguments are the kernel's own, keyword arguments its compile-time constants.
"""
