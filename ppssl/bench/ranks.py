"""Images per second of two ranks of one thread each against one such rank: whole runs under Paddle's launcher on the embedded digits."""
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
    """Run by run in turns. ratio: throughput of two over one, ideally 2."""
    pairs = [tuple(throughput(recipe, ranks) for ranks in (1, 2)) for _ in range(repeats)]
    ratios = [two / one for one, two in pairs]
    one, two = (statistics.median(side) for side in zip(*pairs))
    return [{"case": f"ranks {recipe}, one thread each", "one_rank_images_per_s": round(one, 1), "two_ranks_images_per_s": round(two, 1),
             "ratio": round(statistics.median(ratios), 3), "ratio_spread": spread(ratios)}]


def throughput(recipe: str, ranks: int) -> float:
    """Images per second of all ranks, the median of the run's intervals. Raises BadRequest where the run failed."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PADDLE_")} | {"MKL_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "paddle.distributed.launch", "--nproc_per_node", str(ranks), "--log_dir", folder, "main_pretrain.py",
                   "-c", recipe, "--device", "cpu", "--num_workers", "0", "--output_dir", "", "--max_train_step", str(STEPS),
                   "--print_freq", str(INTERVAL)]
        code = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode
        text = (Path(folder) / "workerlog.0").read_text()
    rates = [float(rate) for rate in re.findall(r"ips: ([\d.]+)", text)][1:]
    if code or not rates:
        raise BadRequest(f"the run with {ranks} ranks ended with code {code}: {text.strip().splitlines()[-1]}")
    return statistics.median(rates)
