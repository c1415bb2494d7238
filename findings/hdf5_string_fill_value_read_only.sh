#!/usr/bin/env bash
# HDF5 2.0.0 (h5py 3.16.0): variable-length strings with a fill value cannot be read from a file opened read-only.
#
# A chunked dataset of variable-length strings has a fill value that is not empty. One element was written, the others
# not yet. The fill value has to lie somewhere in the file's global heap before a string can refer to it.
#
# Guessed: unwritten elements read as the fill value, in any mode, as they do for numbers.
# Seen: "r" raises OSError, no write intent on file; "r+" gives the fill value. Where no element was ever written, or
# the fill value is the empty default, "r" gives it as well.
#
# The script fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check h5py==3.16.0 numpy==2.4.6
cd "$folder"
venv/bin/python - <<'PYTHON'
import h5py


def read(name, dtype, fill, written, mode):
    with h5py.File(f"{name}.h5", "w") as file:
        data = file.create_dataset("x", shape=(10,), maxshape=(None,), chunks=(4,), dtype=dtype, fillvalue=fill)
        if written is not None:
            data[0] = written
    with h5py.File(f"{name}.h5", mode) as file:
        try:
            return file["x"][:].tolist()[-1]
        except OSError as error:
            return str(error)


strings = h5py.string_dtype()
seen = {
    "number, r": read("number", "f8", 7.0, 1.0, "r"),
    "string, r": read("string", strings, "[]", "a", "r"),
    "string, r+": read("string", strings, "[]", "a", "r+"),
    "nothing written, r": read("nothing", strings, "[]", None, "r"),
    "empty fill value, r": read("empty", strings, None, "a", "r"),
}
for what, value in seen.items():
    print(f"{what}: {value}")
assert seen["number, r"] == 7.0
assert "no write intent" in seen["string, r"], "no longer so"
assert seen["string, r+"] == b"[]"
assert seen["nothing written, r"] == b"[]"
assert seen["empty fill value, r"] == b""
PYTHON
