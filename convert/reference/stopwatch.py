"""A process that does one piece of work whenever it is asked to, and says how long that took.

It knows nothing of either framework: `python -m ppssl.bench` runs one such process of each and asks them in turn.
"""
import json
import resource
import sys
import time
from collections.abc import Callable


def serve(work: Callable[[], object], **facts) -> None:
    """Print the facts as a JSON line; then for every line of standard input do the work, and print its seconds, the processor's
    seconds, what it returned and the process's peak memory in MiB as another. Ends with the input."""
    answer(facts)
    for _ in sys.stdin:
        start, cpu_start = time.perf_counter(), time.process_time()
        result = work()
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
        answer({"seconds": seconds, "cpu_seconds": cpu_seconds, "result": result, "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024})


def answer(content: dict) -> None:
    print(json.dumps(content), flush=True)
