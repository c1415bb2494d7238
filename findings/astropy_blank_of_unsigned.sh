#!/usr/bin/env bash
# astropy 8.0.2: BLANK marks no gaps in a FITS image of unsigned 16-bit numbers.
#
# FITS has no unsigned 16-bit numbers: they are stored as signed ones with BZERO = 32768. BLANK is a stored value.
#
# Guessed: pixels that are BLANK are NaN, as in an image with BZERO = 0, or with any BSCALE.
# Seen: astropy gives uint16, and the gap is an ordinary count (BLANK + 32768), without a warning.
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

stored = np.array([[1, 2], [-999, 4]], np.int16)


def read(bzero):
    hdu = fits.PrimaryHDU(stored)
    hdu.header["BLANK"] = -999
    hdu.header["BSCALE"] = 1
    hdu.header["BZERO"] = bzero
    raw = hdu.header.tostring().encode() + stored.astype(">i2").tobytes().ljust(2880, b"\0")
    with open(f"{bzero}.fits", "wb") as file:
        file.write(raw)
    with fits.open(f"{bzero}.fits") as found:
        return np.array(found[0].data)


signed, unsigned, other = read(0), read(32768), read(100)
print("BZERO 0:", signed.dtype, signed.tolist(), " 32768:", unsigned.dtype, unsigned.tolist(), " 100:", other.tolist())
assert np.isnan(other[1, 0])
assert unsigned.dtype == np.uint16 and unsigned[1, 0] == 32768 - 999, "no longer so"
PYTHON
