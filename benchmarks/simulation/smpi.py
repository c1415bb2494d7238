"""SimGrid's SMPI: a platform file by parameters, and em_step.c on it.

Casanova, Giersch, Legrand, Quinson, Suter, *Versatile, Scalable, and Accurate Simulation of Distributed Applications
and Platforms*, J. Parallel Distrib. Comput. 74, 2014; Degomme et al., *Simulating MPI Applications: The SMPI
Approach*, IEEE Trans. Parallel Distrib. Syst. 28, 2017.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from math import ceil
from pathlib import Path

from gem.errors import ConfigError

SOURCE = Path(__file__).with_name("em_step.c")
INSTALL = "SimGrid is not installed (no smpirun on the PATH): apt-get install libsimgrid-dev brings smpicc and smpirun"


ABOUT = (
    "our own fat tree, as SimGrid's packages bring no description of a machine of this size. It has the published "
    "sizes of Stampede (TACC): 6,400 nodes on FDR InfiniBand, 56 Gbit/s coded 64/66. The wiring is assumed: 20 nodes "
    "on each of 320 leaf switches, 8 core switches, 16 links up for 20 down, 1.2 µs between nodes over four links."
)


@dataclass(frozen=True)
class Cluster:
    """A fat tree of two levels: nodes on leaf switches, leaf switches on core switches. ABOUT says whose."""

    name: str = "fat tree of 6,400 nodes, FDR InfiniBand"
    leaf: int = 20
    leaves: int = 320
    cores: int = 8
    links: int = 2
    bandwidth: float = 6.8e9
    latency: float = 0.3e-6

    @property
    def nodes(self) -> int:
        return self.leaf * self.leaves

    def xml(self) -> str:
        """The platform file."""
        return f"""<?xml version="1.0"?>
<!DOCTYPE platform SYSTEM "https://simgrid.org/simgrid.dtd">
<platform version="4.1">
  <cluster id="cluster" prefix="node-" suffix="" radical="0-{self.nodes - 1}" speed="1Gf" core="64"
           bw="{self.bandwidth:.0f}Bps" lat="{self.latency}s" sharing_policy="SPLITDUPLEX"
           topology="FAT_TREE" topo_parameters="2;{self.leaf},{self.leaves};1,{self.cores};1,{self.links}"
           loopback_bw="{self.bandwidth:.0f}Bps" loopback_lat="{self.latency}s"/>
</platform>
"""


@dataclass(frozen=True)
class Simulated:
    """Simulated seconds of one step: all of it, the small reductions, the large one."""

    step: float
    selection: float
    reduction: float


def available() -> str | None:
    """Why there is no simulation here."""
    return None if shutil.which("smpirun") and shutil.which("smpicc") else INSTALL


def prepare(folder: Path, cluster: Cluster) -> None:
    """Compile em_step.c and write the platform, in `folder`.

    Raises
    ------
    ConfigError
        If SimGrid is missing, or em_step.c does not compile.
    """
    if reason := available():
        raise ConfigError(reason)
    (folder / "cluster.xml").write_text(cluster.xml())
    done = subprocess.run(
        ["smpicc", "-O2", str(SOURCE), "-o", str(folder / "em_step")], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise ConfigError(f"smpicc does not compile {SOURCE.name}: {done.stderr.strip()}")


def simulate(
    folder: Path,
    cluster: Cluster,
    ranks: int,
    seconds: float,
    size: int,
    small: int,
    gathered: int = 0,
    library: str = "ompi",
) -> Simulated:
    """One step on so many ranks, one on each node while there are enough of them.

    Parameters
    ----------
    folder : where `prepare` has been
    seconds : of computation
    size : bytes of the statistics
    small : reductions of one count
    gathered : bytes of parameters that ranks exchange after a reduce-scatter; 0: an Allreduce instead
    library : whose choice of algorithms ("ompi", "mpich", "mvapich2", "impi")

    Raises
    ------
    ConfigError
        If the simulation fails.
    """
    per_node = ceil(ranks / cluster.nodes)
    hosts = "".join(f"node-{i // per_node}\n" for i in range(ranks))
    (folder / "hosts").write_text(hosts)
    command = [
        "smpirun", "-np", str(ranks), "-platform", "cluster.xml", "-hostfile", "hosts",
        f"--cfg=smpi/coll-selector:{library}",
        "--cfg=smpi/simulate-computation:no",  # of this machine: the step's is given
        "--cfg=smpi/bw-factor:0:1", "--cfg=smpi/lat-factor:0:1",  # the defaults are those of TCP on Ethernet
        # SMPI's own exchange of who shares a node: linear by default, which takes most of a simulation's time
        "--cfg=smpi/bcast:binomial_tree", "--cfg=smpi/gather:ompi_binomial", "--cfg=smpi/allgather:bruck",
        "--cfg=smpi/privatization:no", "--cfg=contexts/stack-size:256", "--log=root.thres:critical",
        "./em_step", f"{seconds:.9f}", str(size), str(small), str(gathered),
    ]  # fmt: skip
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    numbers = done.stdout.split()
    if done.returncode or len(numbers) != 3:
        raise ConfigError(f"smpirun failed on {ranks} ranks: {(done.stderr or done.stdout).strip()[-500:]}")
    return Simulated(*map(float, numbers))
