"""Two processes that take turns: ours and, where there is one, its peer. Ratios of such pairs survive a noisy machine."""
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from ppssl.errors import BadRequest
from ppssl.runtime import VARIABLES

SETTLE = 0.2                                              # seconds in which the other side's idle threads go to sleep


@dataclass
class Contender:
    """A process that works when asked (`convert.reference.stopwatch`). Times in seconds: on the clock, and of all its threads
    on processors, which neighbours on the machine disturb less."""
    process: subprocess.Popen
    facts: dict = field(default_factory=dict)
    times: list[float] = field(default_factory=list)
    cpu_times: list[float] = field(default_factory=list)
    result: object = None                                 # of the first round
    peak_mib: float = 0.0

    def read(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            raise BadRequest(f"the benchmark's process ended with code {self.process.wait()}: {' '.join(self.process.args[:4])}")
        return json.loads(line)

    def work(self, counts: bool) -> None:
        """One round, which counts or is a warm-up."""
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        answer = self.read()
        self.result = answer["result"] if self.result is None else self.result
        self.peak_mib = answer["peak_mib"]
        if counts:
            self.times.append(answer["seconds"])
            self.cpu_times.append(answer["cpu_seconds"])


@contextlib.contextmanager
def contender(arguments: list[str], plain: bool = False) -> Iterator[Contender]:
    """Start `python ARGUMENTS`. plain: without the settings that ppssl makes for its own process."""
    environment = {k: v for k, v in os.environ.items() if not (plain and k in VARIABLES)}
    process = subprocess.Popen([sys.executable, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        side = Contender(process)
        side.facts = side.read()
        yield side
    finally:
        process.stdin.close()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()


def take_turns(sides: list[Contender], repeats: int, warmup: int = 2) -> None:
    """Fill the sides' times, round by round, the first `warmup` rounds left out."""
    for number in range(warmup + repeats):
        for side in sides:
            time.sleep(SETTLE)
            side.work(counts=number >= warmup)


def row(case: str, ours: Contender, peer: Contender | None, work: float, unit: str, **facts) -> dict:
    """What is reported of a duel. work: how many `unit` a round does; spread: half the range of the middle half, relative."""
    ms = 1000 * statistics.median(ours.times)
    found = {"case": case, "ours_ms": round(ms, 2), "spread": spread(ours.times), f"ours_{unit}_per_s": round(1000 * work / ms, 2),
             "ours_peak_mib": round(ours.peak_mib)}
    if peer:
        ratios = [a / b for a, b in zip(ours.times, peer.times, strict=True)]
        peer_ms = 1000 * statistics.median(peer.times)
        found |= {"peer": peer.facts["framework"], "peer_ms": round(peer_ms, 2), "peer_peak_mib": round(peer.peak_mib),
                  "ratio": round(statistics.median(ratios), 3), "ratio_spread": spread(ratios),
                  "cpu_ratio": round(statistics.median(a / b for a, b in zip(ours.cpu_times, peer.cpu_times)), 3)}
    return found | facts


def spread(values: list[float]) -> float:
    """Half the interquartile range over the median."""
    if len(values) < 2:
        return 0.0
    low, middle, high = statistics.quantiles(values, n=4)
    return round((high - low) / 2 / middle, 3)
