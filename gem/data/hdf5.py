"""Tables in HDF5 files."""

from __future__ import annotations

from threading import Lock
from typing import Any

import numpy as np

from gem.data.source import Form, Source, only_table, reading
from gem.errors import ConfigError
from gem.extras import install_hint


class HDF5Source(Source):
    """A dataset of an HDF5 file, by default its only 2-D numeric one."""

    def __init__(self, path: str, dataset: str | None = None):
        try:
            import h5py
        except ImportError as error:
            raise ConfigError(f"reading {path} needs h5py: {install_hint('hdf5')}") from error
        with reading(path), h5py.File(path, "r") as file:
            if dataset is None or not isinstance(file.get(dataset), h5py.Dataset):
                dataset = only_table(path, dataset, _hdf5_tables(file))
            name = f"{path}:{dataset}"
            super().__init__(file[dataset].shape or (), file[dataset].dtype, name, {"data": name})
        self._file = h5py.File(path, "r")
        self._table = self._file[dataset]
        self._lock = Lock()  # HDF5 is not thread-safe, and close() must not come amid a read

    def read(self, start: int, stop: int) -> np.ndarray:
        with self._lock, reading(self.name):
            return self._table[start:stop]

    def close(self) -> None:
        with self._lock:
            self._file.close()


def _hdf5_tables(file: Any) -> dict[str, Form]:
    from h5py import Dataset

    tables = {}

    def note(name: str, node: Any) -> None:
        if isinstance(node, Dataset):
            tables[f"/{name}"] = node.shape or (), node.dtype

    file.visititems(note)
    return tables
