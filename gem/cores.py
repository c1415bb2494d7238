"""Cores: how many of the host's a process may use, beside others that may use some of the same."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

GROUPS = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")


class Room(NamedTuple):
    """What one process may use."""

    cores: int  # those that it may run on, as bits
    quotas: dict[str, float]  # group of processes (cgroup) → the cores' worth of time that it has in all


def room() -> Room:
    """What this process may use, as the system tells it now."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = affinity(0) if affinity else range(os.cpu_count() or 1)
    return Room(sum(1 << core for core in cores), _quotas())


def share(own: Room, of_host: Sequence[Room]) -> int:
    """How many cores are this process's part: each is shared out among those of the host's processes that may use it.

    Processes that were bound to cores of their own have all of these; processes that may use the same ones, equal
    parts; likewise the time that a quota gives a group. At least 1.
    """
    parts = [sum(1 / _users(core, of_host) for core in range(own.cores.bit_length()) if own.cores >> core & 1)]
    for group, quota in own.quotas.items():
        parts.append(quota / max(1, sum(group in each.quotas for each in of_host)))
    return max(1, int(min(parts) + 1e-9))  # 3 thirds are 1


def _users(core: int, of_host: Sequence[Room]) -> int:
    return max(1, sum(each.cores >> core & 1 for each in of_host))


def _quotas() -> dict[str, float]:
    """The limits of this process's cgroups and of the groups that these are in; of version 2 and of version 1."""
    try:
        lines = OWN_GROUPS.read_text().splitlines()
    except OSError:  # not Linux
        return {}
    found = {}
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = GROUPS / controllers if controllers else GROUPS
        folder = top / path.lstrip("/")
        for group in (folder, *folder.parents):
            if (limit := _limit(group)) is not None:
                found[str(group)] = limit
            if group == top:
                break
    return found


def _limit(group: Path) -> float | None:
    """Cores' worth of time of a group; None where it has no limit of its own."""
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota = (group / "cpu.cfs_quota_us").read_text().strip()
            period = (group / "cpu.cfs_period_us").read_text().strip()
        return float(quota) / float(period) if float(quota) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):  # "max", or nothing there
        return None
