"""Images per second of two ranks of one thread each against one such rank: whole runs under Paddle's launcher on the embedded digits."""
import contextlib
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from ppssl.bench.duel import spread
from ppssl.errors import BadRequest

STEPS, INTERVAL = 60, 20                                  # the first interval is warm-up


def run(recipe: str, repeats: int) -> list[dict]:
    """One rank, two ranks, and two runs that know nothing of each other, in turns.

    ratio: throughput of two ranks over one, ideally 2; apart_ratio: of the two runs, what the machine itself allows.
    """
    rounds = [(throughput(recipe, 1), throughput(recipe, 2), throughput(recipe, 1, runs=2)) for _ in range(repeats)]
    ratios, apart = ([row[i] / row[0] for row in rounds] for i in (1, 2))
    one, two, _ = (statistics.median(side) for side in zip(*rounds))
    return [{"case": f"ranks {recipe}, one thread each", "one_rank_images_per_s": round(one, 1), "two_ranks_images_per_s": round(two, 1),
             "ratio": round(statistics.median(ratios), 3), "ratio_spread": spread(ratios),
             "apart_ratio": round(statistics.median(apart), 3), "apart_spread": spread(apart)}]


def throughput(recipe: str, ranks: int, runs: int = 1) -> float:
    """Images per second of all ranks of all runs, the medians of their intervals. Raises BadRequest where a run failed."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PADDLE_")} | {"MKL_NUM_THREADS": "1"}
    with contextlib.ExitStack() as stack:
        folders = [Path(stack.enter_context(tempfile.TemporaryDirectory())) for _ in range(runs)]
        commands = [[sys.executable, "-m", "paddle.distributed.launch", "--nproc_per_node", str(ranks), "--log_dir", str(folder), "main_pretrain.py",
                     "-c", recipe, "--device", "cpu", "--num_workers", "0", "--output_dir", "", "--max_train_step", str(STEPS),
                     "--print_freq", str(INTERVAL)] for folder in folders]
        started = [subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for command in commands]
        codes = [process.wait() for process in started]
        return sum(rate(code, (folder / "workerlog.0").read_text(), ranks) for code, folder in zip(codes, folders))


def rate(code: int, text: str, ranks: int) -> float:
    """Images per second that a run's log reports."""
    rates = [float(rate) for rate in re.findall(r"ips: ([\d.]+)", text)][1:]
    if code or not rates:
        raise BadRequest(f"the run with {ranks} ranks ended with code {code}: {text.strip().splitlines()[-1]}")
    return statistics.median(rates)
