#!/usr/bin/env bash
# netCDF4-python 1.7.5.1.post1: valid_min and valid_max in unpacked units are compared with packed numbers.
#
# The netCDF Users Guide, appendix A, on valid_range of a variable with scale_factor: if its type is that of scale_factor
# and wider than the packed one, "then it will be interpreted as referring to the internal (unpacked) data".
#
# Guessed: shorts with scale_factor = 0.5 and valid_max = 60.0, both doubles: stored 100, which is 50.0, is valid.
# Seen: 50.0 is masked, as 100 > 60; what is left ends at 30.0.
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

with netCDF4.Dataset("x.nc", "w") as file:
    file.createDimension("t", 4)
    x = file.createVariable("x", "i2", ("t",))
    x.scale_factor, x.valid_max = np.float64(0.5), np.float64(60)
    x.set_auto_maskandscale(False)
    x[:] = np.array([40, 60, 100, 140], "i2")  # 20, 30, 50, 70
with netCDF4.Dataset("x.nc") as file:
    read = file["x"][:]
print(f"20, 30, 50, 70 with valid_max = 60.0 are read as {read}")
assert np.ma.getmaskarray(read).tolist() == [False, False, True, True], "no longer so"
PYTHON
