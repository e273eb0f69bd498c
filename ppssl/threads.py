"""This rank's share of the processor's cores, for work to which Paddle's CPU kernels give one thread.

Jobs run in the OpenMP team in which Paddle's matrix products run. Its threads stay awake for 0.2 s after each of them and
would take the cores from any others; a matrix product inside a job uses the job's thread alone.
"""
import ctypes
import os
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path

import paddle

SMALL = 1 << 15                                           # elements that one thread is done with before another one has started
REGION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def count() -> int:
    """Threads that this rank may keep busy; see `ppssl.runtime`."""
    return max(1, int(os.environ.get("MKL_NUM_THREADS", 1)))


@cache
def library(name: str) -> ctypes.CDLL | None:
    """A shared library of Paddle's own, None where this Paddle has none of that name."""
    path = Path(paddle.__file__).parent / "libs" / name
    return ctypes.CDLL(str(path)) if path.exists() else None


def at_once(jobs: Sequence[Callable]) -> list:
    """Run the jobs at the same time; their results, when all are done. Raises what one of them raises."""
    results: list = [None] * len(jobs)
    failures: list[BaseException] = []
    openmp = library("libiomp5.so") if len(jobs) > 1 else None

    def member(_data) -> None:
        first, step = (openmp.omp_get_thread_num(), openmp.omp_get_num_threads()) if openmp else (0, 1)
        try:
            for i in range(first, len(jobs), step):
                results[i] = jobs[i]()
        except BaseException as failure:                  # noqa: BLE001 - a C function calls this one, the next lines raise
            failures.append(failure)

    if openmp:
        openmp.GOMP_parallel(REGION(member), None, len(jobs), 0)
    else:
        member(None)
    if failures:
        raise failures[0]
    return results


def over(length: int, elements: int, job: Callable[[int, int], object]) -> list:
    """The results of job(first, last) for parts of range(length), in order; at once where there are enough `elements` in all."""
    step = max(1, -(-length // count()) if elements > SMALL else length)
    return at_once([partial(job, first, min(first + step, length)) for first in range(0, length, step)])


def together(jobs: Iterable[Callable[[], None]]) -> None:
    """`at_once`, without gradients."""
    at_once([partial(without_gradients, job) for job in jobs])


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
