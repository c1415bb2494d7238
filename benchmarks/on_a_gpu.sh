#!/usr/bin/env bash
# All that is to be known of a GPU that is at hand for ten minutes: bash benchmarks/on_a_gpu.sh OUT [--small]
#
# For a bare machine: Python 3.11 or newer (PYTHON, default python3) with CuPy, numpy and h5py; scikit-learn, PyTorch,
# compute-sanitizer and ncu where they are there. Nothing is installed but in a temporary folder, nothing is fetched.
# What Python packages lack travels as wheels in .cache/wheels, which a machine with a network fills:
#
#   python3 -m pip download --only-binary=:all: --python-version 3.12 -d .cache/wheels pytest rich
#
# Each part has its own limit, all together take at most 350 s (ON_A_GPU_SECONDS), and one that fails costs the others
# nothing; the exit status is 1 then. OUT gets a file of some kB for each part, and summary.txt.
#
# --small is a dry run with small sizes; where PYTHON is not set, on the CuPy of the CPU (tests/cupy_on_cpu).
set -uo pipefail
[ $# -ge 1 ] || { sed -n '2,14s/^# \{0,1\}//p' "$0"; exit 2; }
mkdir -p "$1" && out=$(cd "$1" && pwd) || exit 2
cd "$(dirname "$0")/.." || exit 2
small=${2:-}
if [ "$small" = --small ] && [ -z "${PYTHON:-}" ]; then
    export CUSHIM_ORDER=fwd FAKECUDA_CXXFLAGS=-O0
    run='import os, sys; os.environ["PYTHON"] = sys.executable; os.execvp("bash", ["bash", *sys.argv[1:]])'
    exec python3 tests/cupy_on_cpu/build.py -c "$run" benchmarks/on_a_gpu.sh "$out" --small
fi
python=${PYTHON:-python3}
seconds=${ON_A_GPU_SECONDS:-350}
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT

# The package as an installation would lay it out, and of the wheels what the interpreter does not have.
mkdir "$site/gem" "$site/wheels"
ln -s "$PWD"/gem/* "$site/gem/"
ln -s "$PWD/kernels" "$site/gem/kernels"
if ls .cache/wheels/*.whl >/dev/null 2>&1; then
    $python -m pip install -q --no-index --no-deps --no-compile --target "$site/wheels" .cache/wheels/*.whl
fi
$python - "$site" <<'EOS'
import pathlib, sys
from importlib.util import find_spec
site = pathlib.Path(sys.argv[1])
for path in (site / "wheels").iterdir():
    name = path.name.split(".")[0]
    if path.suffix != ".dist-info" and name.isidentifier() and find_spec(name) is None:
        (site / path.name).symlink_to(path)
EOS
export PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1 PYTHONPATH="$site:$PWD:$PWD/tests${PYTHONPATH:+:$PYTHONPATH}"

began=$SECONDS worst=0
: >"$out/summary.txt"

# part NAME LIMIT COMMAND...: its output to OUT/NAME.txt, the end of it if it is long.
part() {
    local name=$1 limit=$2 left=$((seconds - (SECONDS - began))) from=$SECONDS status
    shift 2
    if [ "$left" -lt 5 ]; then
        echo "$name: not begun, the time is over" | tee -a "$out/summary.txt"
        return
    fi
    timeout -k 5 "$((limit < left ? limit : left))" "$@" >"$site/said" 2>&1
    status=$?
    { echo "\$ $*"; tail -c 16000 "$site/said"; } >"$out/$name.txt"
    case $status in
        0) status="done" ;;
        124 | 137) status="stopped at its limit" ;;
        *) status="failed with $status" worst=1 ;;
    esac
    echo "$name: $status, $((SECONDS - from)) s" | tee -a "$out/summary.txt"
}

# with PROGRAM COMMAND...: under a program where it is there, else without it.
with() {
    local program=$1
    command -v "${program%% *}" >/dev/null || { echo "${program%% *} is not here"; program=""; }
    shift
    $program "$@"
}
export -f with

if [ "$small" = --small ]; then
    mixture="--N 3000 --D 8 --K 5" sweep="--profile tiny -k mog-diag" accuracy="--only golden" limit=8
    chosen="cuda and bsc_H6_Hprime6_gamma6_T1-float32" kernels="scale_rows preselect" workers="" points=256 cases="bsc-8-5"
else
    mixture="--N 1000000 --D 128 --K 1024" sweep="--profile quick" accuracy="" limit=60
    chosen="cuda and not host" kernels=$($python -c "from gem.kernels import source; print(*source.names())")
    workers=$($python -c "from importlib.util import find_spec; print('-n 6' if find_spec('xdist') else '')")
    points=32768 cases="mog-64-50 mog-128-1024 bsc-8-5 bsc-12-4 gsc mca noisyor"
fi

part machine 20 bash -c "nvidia-smi; nvcc --version | tail -2; uname -a; $python -c 'import sys, numpy, cupy
print(sys.version, numpy.__version__, cupy.__version__)
import gem; print(gem.backends.available()[\"cuda\"])'"
part mixture 70 $python -m benchmarks.large_mixture --backend cuda $mixture
part sweep 90 $python -m benchmarks --backend cuda $sweep --output "$out/sweep.jsonl"
part tests 110 env GEM_REQUIRE=cuda,gpu $python -m pytest -q -p no:cacheprovider $workers -k "$chosen" --maxfail=20 \
    tests/test_golden.py tests/test_kernels.py tests/test_totals.py tests/test_devices.py
part profile 60 $python -m benchmarks.profiled --N $points $cases
part sanitizer 50 bash -c "with 'compute-sanitizer --error-exitcode 3' $python tests/parity.py --case 1 kernels cuda $kernels"
part accuracy $limit $python -m benchmarks.accuracy --backend cuda $accuracy
echo "all: $((SECONDS - began)) s" | tee -a "$out/summary.txt"
exit $worst
