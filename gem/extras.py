"""The packages behind each extra of setup.cfg: gem is not on PyPI, so a hint names what is there to be installed."""

from __future__ import annotations

from collections.abc import Iterable

PACKAGES: dict[str, tuple[str, ...]] = {
    "hdf5": ("h5py>=3.8",),  # comes with gem; the others are extras
    "mpi": ("mpi4py>=4", "mpich>=4"),
    "opencl": ("pyopencl[pocl]>=2023.1", "reikna>=0.8"),
    "opencl-intel": ("pyopencl[pocl]>=2023.1", "reikna>=0.8", "intel-opencl-rt>=2026", "intel-cmplr-lib-rt>=2026"),
    "cuda": ("cupy-cuda13x[ctk]>=14",),
    "cuda12": ("cupy-cuda12x[ctk]>=14",),
    "cuda-check": ("nvidia-cuda-nvrtc",),
    "hdf5-filters": ("hdf5plugin>=4",),
    "images": ("pillow>=9", "tifffile>=2023.1.23", "imagecodecs>=2023.1.23"),
    "formats": ("scipy>=1.10", "astropy>=5.3", "zarr>=2.16", "pyarrow>=14"),
    "plot": ("matplotlib>=3.7", "scipy>=1.10"),
}


def install_hint(*extras: str) -> str:
    """The command that installs what one extra stands for, or several: as in pip install "pillow>=9".

    Parameters
    ----------
    *extras : str
        Names in `PACKAGES`.
    """
    packages = dict.fromkeys(package for extra in extras for package in PACKAGES[extra])
    return _command(packages)


def package_hint(name: str) -> str:
    """The command that installs one package of an extra, as in pip install "zarr>=2.16"."""
    return _command([next(p for packages in PACKAGES.values() for p in packages if p.startswith(f"{name}>"))])


def _command(packages: Iterable[str]) -> str:
    return "pip install " + " ".join(f'"{p}"' if set(p) & set("<>=[") else p for p in packages)
