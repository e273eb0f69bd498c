"""This rank's share of the processor's cores, for work to which Paddle's CPU kernels give one thread."""
import os
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import paddle


def count() -> int:
    """Threads that this rank may keep busy; see `ppssl.runtime`."""
    return max(1, int(os.environ.get("MKL_NUM_THREADS", 1)))


@cache
def pool(_process: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count(), thread_name_prefix="ppssl")


def together(jobs: Iterable[Callable[[], None]]) -> None:
    """Run the jobs at the same time, without gradients, and return when all are done; raises what one of them raises."""
    first, *others = jobs
    running = [pool(os.getpid()).submit(without_gradients, job) for job in others]
    without_gradients(first)
    for job in running:
        job.result()


def without_gradients(job: Callable[[], None]) -> None:
    """Run a job. As a decorator, `no_grad` would keep one thread's former state for all of them."""
    with paddle.no_grad():
        job()


def in_parts(items: Sequence, tensor: Callable) -> list[list]:
    """Items cut into parts for `together`, of about equal elements in tensor(item): on CPU one for each thread, else one."""
    if count() == 1 or not items or not tensor(items[0]).place.is_cpu_place():
        return [list(items)]
    owners = shares({i: tensor(item).size for i, item in enumerate(items)}, count())
    return [[items[i] for i in owners if owners[i] == part] for part in sorted(set(owners.values()))]


def shares(sizes: Mapping[Hashable, int], parts: int) -> dict:
    """Which of `parts` takes each thing: the largest first, each to the part that has least."""
    loads, owners = [0] * parts, {}
    for name in sorted(sizes, key=sizes.get, reverse=True):
        owners[name] = loads.index(min(loads))
        loads[owners[name]] += sizes[name]
    return owners
