#!/usr/bin/env bash
# Pillow 13.0.0: a FITS image of unsigned 16-bit counts (BITPIX 16, BZERO 32768, as cameras write it) has other values.
#
# FITS stores signed numbers and says what they mean: BZERO + BSCALE x stored (FITS standard 4.0, section 4.4.2.5).
#
# Guessed: the counts, as a mode I;16 image, or a refusal.
# Seen: the stored numbers, read as if they were unsigned: 0 becomes 32768, 40000 becomes 7232, which turns dark into
# light. Rows are upside down, too, as FITS counts them from below.
#
# The script fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check pillow==13.0.0 numpy==2.4.6
cd "$folder"
venv/bin/python - <<'PYTHON'
import numpy as np
from PIL import Image

counts = np.array([[0, 1, 300], [32768, 40000, 65535]])
cards = ["SIMPLE  =                    T", "BITPIX  =                   16", "NAXIS   =                    2",
         "NAXIS1  =                    3", "NAXIS2  =                    2", "BSCALE  =                    1",
         "BZERO   =                32768", "END"]
with open("x.fits", "wb") as file:
    file.write("".join(card.ljust(80) for card in cards).ljust(2880).encode())
    file.write((counts - 32768).astype(">i2").tobytes().ljust(2880, b"\0"))
with Image.open("x.fits") as image:
    mode, read = image.mode, np.asarray(image)[::-1]
print("written:", counts.tolist(), " read:", mode, read.tolist())
assert mode == "I;16" and np.array_equal(read, (counts + 32768) % 65536), "no longer so"
PYTHON
