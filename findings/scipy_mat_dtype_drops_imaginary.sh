#!/usr/bin/env bash
# SciPy 1.17.1: loadmat(..., mat_dtype=True) gives the real part of a complex matrix of a MATLAB 5 file.
#
# mat_dtype=True asks for the class that MATLAB would show, double for numbers that were packed into fewer bytes.
#
# Guessed: a complex double matrix is complex128 with it and without it.
# Seen: it is float64 with it, the imaginary part is gone; numpy gives a ComplexWarning, which tells no name. Sparse
# complex matrices keep theirs.
#
# The script fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check scipy==1.17.1 numpy==2.4.6
cd "$folder"
venv/bin/python - <<'PYTHON'
import warnings

import numpy as np
from scipy.io import loadmat, savemat
from scipy.sparse import csc_array

savemat("x.mat", {"X": np.array([[1 + 2j, 3 - 4j]]), "S": csc_array([[1 + 2j, 0]])})
plain = loadmat("x.mat")
with warnings.catch_warnings():
    warnings.simplefilter("ignore", np.exceptions.ComplexWarning)
    typed = loadmat("x.mat", mat_dtype=True)
print("plain:", plain["X"].dtype, plain["X"], " mat_dtype:", typed["X"].dtype, typed["X"], " sparse:", typed["S"].dtype)
assert plain["X"].dtype == complex and typed["X"].dtype == float and typed["S"].dtype == complex, "no longer so"
PYTHON
