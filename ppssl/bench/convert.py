"""The converter on a large file, against copying that file twice: reading and writing each tensor is all there is to do.

Every round runs each side as a process of its own (`python -m convert ...`, and a Python that copies), start and imports
included; both write to the disk before they end. What memory they take is the peak beyond their imports.
"""
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from convert.formats import save_torch
from ppssl.bench.duel import spread
from ppssl.errors import BadRequest

MEMORY = """
import re, sys
def kib(name):
    return int(re.search(name + r":\\s*(\\d+)", open("/proc/self/status").read())[1])
def measured(work):
    open("/proc/self/clear_refs", "w").write("5")
    before = kib("VmRSS")
    code = work()
    print((kib("VmHWM") - before) / 1024)
    sys.exit(code)
"""
COPY = MEMORY + """
import os, shutil
def work():
    for target in sys.argv[2:]:
        shutil.copyfile(sys.argv[1], target)
        with open(target) as file:
            os.fsync(file.fileno())
measured(work)
"""
CONVERT = MEMORY + """
import ppssl
from convert.__main__ import main
measured(lambda: main(sys.argv[1:]))
"""
ANEW = "import os, ppssl, paddle; os.environ['XDG_CACHE_HOME'] = os.devnull" + CONVERT        # no network is remembered
IMPORTS = "import ppssl, paddle; print(0)"


def run(repeats: int, model: str) -> list[dict]:
    """Both directions on an official file of a registered pretraining model, its weights random."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        official, paddle, back = (folder / file for file in ("official.pth", "converted.pdparams", "back.pth"))
        tensors = write_official(official, model)
        convert = [sys.executable, "-c", CONVERT]
        sides = {
            "imports": [sys.executable, "-c", IMPORTS],
            "copy": [sys.executable, "-c", COPY, official, folder / "one", folder / "two"],
            "to-paddle, the first of its kind": [sys.executable, "-c", ANEW, "to-paddle", official, "-o", paddle, "--overwrite"],
            "to-paddle": [*convert, "to-paddle", official, "-o", paddle, "--overwrite"],
            "to-torch": [*convert, "to-torch", paddle, "-o", back, "--overwrite"],
        }
        times, cpu, peaks = take_turns(sides, repeats)
    return [row(direction, model, times, cpu, peaks[direction], tensors) for direction in sides if direction.startswith("to-")]


def write_official(path: Path, model: str) -> int:
    """An official file; returns the bytes of its tensors."""
    from paddle import LazyGuard

    from convert.layout import official_shapes
    from ppssl.models import registry

    with LazyGuard():
        shapes = official_shapes(registry.create("pretrain", model))
    rng = np.random.default_rng(0)
    weights = {key: rng.standard_normal(shape, np.float32) for key, shape in shapes.items()}
    save_torch(path, {"model": weights})
    return sum(value.nbytes for value in weights.values())


def take_turns(sides: dict[str, list], repeats: int) -> tuple[dict[str, list], dict[str, list], dict[str, float]]:
    """({side: seconds of every round}, {side: seconds of processors}, {side: peak MiB}).

    A first round, which warms the page cache, is left out.
    """
    times, cpu = ({side: [] for side in sides} for _ in range(2))
    peaks: dict[str, float] = {}
    for number in range(1 + repeats):
        for side, command in sides.items():
            seconds, processors, peaks[side] = timed(command)
            if number:
                times[side].append(seconds)
                cpu[side].append(processors)
    return times, cpu, peaks


def timed(command: list) -> tuple[float, float, float]:
    """(seconds, seconds of processors, the MiB that the process prints last). Raises BadRequest where it fails."""
    start, used = time.perf_counter(), processor_seconds()
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise BadRequest(f"the benchmark's process ended with code {done.returncode}: {done.stderr.strip()[-200:]}")
    return seconds, processor_seconds() - used, float(done.stdout.split()[-1])


def processor_seconds() -> float:
    """What processes that ended have used, in user mode and in the kernel."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def row(direction: str, model: str, times: dict[str, list], cpu: dict[str, list], peak: float, tensors: int) -> dict:
    """Medians over the rounds. ratio: to the copy of the same round; imports_ms: of Paddle, a part of the first to-paddle alone."""
    ours, peer = times[direction], times["copy"]
    ratios = [a / b for a, b in zip(ours, peer, strict=True)]
    mib = tensors / 2 ** 20
    return {"case": f"convert {direction} {model}", "ours_ms": milliseconds(ours), "spread": spread(ours),
            "peer": "copying the file twice", "peer_ms": milliseconds(peer), "peer_spread": spread(peer),
            "ratio": round(statistics.median(ratios), 3), "ratio_spread": spread(ratios), "imports_ms": milliseconds(times["imports"]),
            "ours_cpu_ms": milliseconds(cpu[direction]), "peer_cpu_ms": milliseconds(cpu["copy"]),
            "imports_cpu_ms": milliseconds(cpu["imports"]), "tensors_mib": round(mib), "peak_mib": round(peak, 1),
            "peak_ratio": round(peak / mib, 3)}


def milliseconds(seconds: list[float]) -> float:
    return round(1000 * statistics.median(seconds), 1)
