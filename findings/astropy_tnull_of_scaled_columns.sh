#!/usr/bin/env bash
# astropy 8.0.2: Table.read takes TNULL of a FITS column for a scaled value, and fails where that is an unsigned number.
#
# TNULLn is the stored integer that stands for an undefined value; TSCALn and TZEROn, by which also unsigned columns are
# written, do not apply to it (FITS standard 4.0, section 7.3.2).
#
# Guessed: entries that are stored as TNULL are masked.
# Seen: where TSCAL = 0.5 and TZERO = 10, TNULL = -99 is the value -39.5, not masked; of an unsigned column with TNULL
# (TZERO = 32768) Table.read ends in a TypeError. fits.getdata gives both as values.
#
# The script fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check astropy==8.0.2 numpy==2.4.6
cd "$folder"
venv/bin/python - <<'PYTHON'
import numpy as np
from astropy.io import fits
from astropy.table import Table


def write(path, scale, zero, null):
    table = fits.BinTableHDU.from_columns([fits.Column("x", "I", array=np.array([1, null, 3], "i2"), null=null)])
    table.header["TSCAL1"], table.header["TZERO1"] = scale, zero
    table.writeto(path)


write("scaled.fits", 0.5, 10.0, -99)
write("unsigned.fits", 1, 32768, -5)
scaled = Table.read("scaled.fits")["x"]
try:
    unsigned = repr(Table.read("unsigned.fits")["x"])
except TypeError as error:
    unsigned = f"TypeError: {error}"
print("scaled:", list(scaled), " mask:", getattr(scaled, "mask", None), " unsigned:", unsigned)
print("getdata:", fits.getdata("scaled.fits", 1)["x"], fits.getdata("unsigned.fits", 1)["x"])
assert not np.any(scaled.mask) and scaled[1] == -39.5 and unsigned.startswith("TypeError"), "no longer so"
PYTHON
