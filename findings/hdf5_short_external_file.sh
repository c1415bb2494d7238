#!/usr/bin/env bash
# HDF5 2.0.0 and 1.12.2 (h5py 3.16.0 and 3.8.0): an external file that is too short is read as zeros.
#
# A dataset may keep its values in another file, of which the HDF5 file says name, offset and length: 800 bytes here.
#
# Guessed: with 400 bytes left of them, reading fails, as it does where the file is gone (or the HDF5 file itself short).
# Seen: the second half is 0, without an error. (A virtual dataset with a source that is gone reads its fill value,
# which is documented; one with a source that became smaller fails with "insufficient elements".)
#
# The script fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check h5py==3.16.0
cd "$folder"
venv/bin/python - <<'PYTHON'
import os

import h5py

with h5py.File("x.h5", "w") as file:
    file.create_dataset("x", (100,), "f8", external=[("raw.bin", 0, 800)])[:] = 7
os.truncate("raw.bin", 400)
with h5py.File("x.h5") as file:
    read = file["x"][:]
print(f"100 values of 7, of which the file has 50: the first is {read[0]}, the last {read[-1]}")
assert read.sum() == 350, "no longer so"
os.remove("raw.bin")
try:
    with h5py.File("x.h5") as file:
        file["x"][:]
except OSError as error:
    print("without the file:", error)
else:
    raise AssertionError("no longer so: a file that is gone is no error")
PYTHON
