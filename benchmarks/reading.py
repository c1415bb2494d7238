"""What reading costs: opening a file and one pass over it, beside the plain read of the library that owns the format.

python -m benchmarks.reading [--N 200000] [--repeats 7] [--write docs/data.md]

The plain read opens the file and reads it whole into memory. gem's pass streams it in batches of 4096 rows, as an EM
step would; of the TIFF stack it cuts 20,000 patches of 16 x 16, which the plain read does not. Both are taken in turn,
times are medians.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pyarrow
import pyarrow.parquet
import tifffile
import zarr

from benchmarks.results import put_between
from benchmarks.timing import BREATH, interleaved, spread
from gem.data import Shard, open_data

D = 64
PATCHES = {"patch": 16, "count": 20_000, "whitening": False}
MARK = "<!-- reading -->"


def write_hdf5(path: Path, table: np.ndarray, **options: object) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=table, **options)


def read_hdf5(path: Path) -> np.ndarray:
    with h5py.File(path) as file:
        return file["x"][:]


def write_zarr(path: Path, table: np.ndarray) -> None:
    array = zarr.open(str(path), mode="w", shape=table.shape, chunks=(4096, D), dtype=table.dtype)
    array[:] = table


def write_parquet(path: Path, table: np.ndarray) -> None:
    columns = {f"c{d}": table[:, d] for d in range(D)}
    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=16_384)


def read_parquet(path: Path) -> np.ndarray:
    table = pyarrow.parquet.read_table(path)
    return np.stack([column.to_numpy() for column in table.columns], axis=1)


def write_tiff(path: Path, table: np.ndarray) -> None:
    scaled = (table.reshape(-1, 400, 400)[:80] * 4000 + 32768).clip(0, 65535).astype(np.uint16)
    tifffile.imwrite(path, scaled, photometric="minisblack")


KINDS: dict[str, tuple[str, Callable[..., object], Callable[[Path], object]]] = {  # what → file, writes it, reads it
    ".npy": ("x.npy", np.save, np.load),
    "HDF5, contiguous": ("contiguous.h5", write_hdf5, read_hdf5),
    "HDF5, chunks of 4096 rows": ("rows.h5", lambda path, t: write_hdf5(path, t, chunks=(4096, D)), read_hdf5),
    "HDF5, chunks by column, gzip": (
        "columns.h5",
        lambda path, table: write_hdf5(path, table, chunks=(len(table), 1), compression="gzip", compression_opts=1),
        read_hdf5,
    ),
    "zarr, chunks of 4096 rows": ("x.zarr", write_zarr, lambda path: zarr.open(str(path), mode="r")[:]),
    "Parquet, groups of 16,384 rows": ("x.parquet", write_parquet, read_parquet),
    "TIFF, 80 pages of 400 x 400; 20,000 patches cut": ("x.tif", write_tiff, tifffile.imread),
}


def one_pass(path: Path, options: dict[str, object]) -> None:
    with open_data(path, **options) as source:
        for _ in Shard(source, 0, source.shape[0], "float32", batch=4096, memory=0).batches():
            pass


def measure(path: Path, plain: Callable[[Path], object], repeats: int) -> list[str]:
    """Milliseconds to open, of a pass with opening, and of the plain read; the ratio of these, pair by pair."""
    options: dict[str, object] = dict(PATCHES) if path.suffix == ".tif" else {}
    functions: dict[str, Callable[[], object]] = {
        "open": lambda: open_data(path, **options).close(),
        "pass": lambda: one_pass(path, options),
        "plain": lambda: plain(path),
    }
    times = interleaved(functions, repeats, warmup=1, pauses=dict.fromkeys(functions, BREATH))
    median = {name: f"{1000 * np.median(seconds):.1f}" for name, seconds in times.items()}
    return [median["open"], median["pass"], median["plain"], spread(times["pass"] / times["plain"])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--N", type=int, default=200_000, help="rows of 64 float32 (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--write", type=Path, metavar="FILE.md", help=f"put the table between two {MARK} of it")
    args = parser.parse_args()
    table = np.random.default_rng(0).standard_normal((args.N, D), dtype=np.float32)
    lines = [
        f"{args.N:,} × {D} float32, in ms (`python -m benchmarks.reading --N {args.N}`):",
        "",
        "| file | open | open and one pass | plain read | pass over plain read (lowest to highest) |",
        "|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as folder:
        for what, (name, write, plain) in KINDS.items():
            write(Path(folder) / name, table)
            lines.append(f"| {what} | {' | '.join(measure(Path(folder) / name, plain, args.repeats))} |")
    print("\n".join(lines))
    if args.write is not None:
        put_between(MARK, "\n".join(lines), args.write)


if __name__ == "__main__":
    main()
