#!/usr/bin/env bash
# netCDF4-python 1.7.5.1.post1 (netCDF-C 4.10.1): bytes that were written are masked.
#
# The netCDF Users Guide says that byte variables have no default fill value, as all 256 values may be meant: "There
# should be no default fill values when reading any byte type". netCDF4-python quotes that in its source, and says of
# such a variable "filling on, default _FillValue of 255 ignored".
#
# Guessed: 255 in an unsigned byte variable, and -127 in a signed one, are read as they were written.
# Seen: they are masked. With filling off (fill_value=False), where nothing is filled, -32767 of a short is masked too.
#
# The script fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check netCDF4==1.7.5.1.post1
cd "$folder"
venv/bin/python - <<'PYTHON'
import netCDF4
import numpy as np

found = {}
for dtype, value, fill in (("u1", 255, None), ("i1", -127, None), ("i2", -32767, False)):
    with netCDF4.Dataset(f"{dtype}.nc", "w") as file:
        file.createDimension("t", 3)
        file.createVariable("x", dtype, ("t",), fill_value=fill)[:] = np.array([1, value, 2], dtype)
    with netCDF4.Dataset(f"{dtype}.nc") as file:
        variable = file["x"]
        found[dtype] = np.ma.getmaskarray(variable[:]).tolist()
        print(f"{dtype}: [1, {value}, 2] is read as {variable[:]}; it says of itself: {repr(variable).splitlines()[-1]}")
assert all(mask == [False, True, False] for mask in found.values()), f"no longer so: {found}"
PYTHON
