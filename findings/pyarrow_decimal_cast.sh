#!/usr/bin/env bash
# pyarrow 26.0.1: a decimal cast to float64 is often not the nearest float64.
#
# Money and measurements lie in Parquet and Arrow files as decimals, such as decimal128(18, 2).
#
# Guessed: cast("float64") gives what Python makes of the same digits, float("1234567.89"), the nearest float64.
# Seen: more than one in twenty of such numbers is the neighbour of the nearest one. By way of strings all are right.
#
# The script fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check pyarrow==26.0.1 numpy==2.4.6
cd "$folder"
venv/bin/python - <<'PYTHON'
from decimal import Decimal

import numpy as np
import pyarrow as pa

cents = np.random.default_rng(0).integers(10**9, 10**12, 20_000)
numbers = [Decimal(int(c)).scaleb(-2) for c in cents]
column = pa.array(numbers, pa.decimal128(18, 2))
nearest = np.array([float(n) for n in numbers])
cast = column.cast(pa.float64()).to_numpy()
strings = column.cast(pa.string()).cast(pa.float64()).to_numpy()
print(f"not the nearest: {(cast != nearest).sum()} of {len(nearest)}; by way of strings: {(strings != nearest).sum()}")
assert (cast != nearest).mean() > 0.05 and np.all(strings == nearest), "no longer so"
PYTHON
