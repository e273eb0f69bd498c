"""Ranks and what they say to each other: Paddle's own collectives, NCCL on GPUs and GLOO on CPU.

With one rank everything here is a no-op and no launcher is needed.
"""
import contextlib
import itertools
import os
import time

import paddle
import paddle.distributed as dist

from ppssl.errors import BadRequest, TrainingFailed
from ppssl.witness import watch

_tags = itertools.count()


def world() -> int:
    """Number of ranks, 1 without a launcher."""
    return int(os.environ.get("PADDLE_TRAINERS_NUM", 1))


def rank() -> int:
    return int(os.environ.get("PADDLE_TRAINER_ID", 0))


def is_main() -> bool:
    return rank() == 0


def start(device: str | None) -> str:
    """Choose the device of this rank and join the others. Returns the device's name ('cpu', 'gpu:0')."""
    if device == "gpu" and not paddle.device.is_compiled_with_cuda():
        raise BadRequest("--device gpu needs a Paddle with GPU support: install requirements-gpu.txt, or give --device cpu")
    if device == "cpu" or device is None and not paddle.device.is_compiled_with_cuda():
        paddle.set_device("cpu")
        paddle.set_flags({"FLAGS_use_stride_kernel": False})         # transposed views are read very slowly on CPU
    elif world() == 1:
        paddle.set_device("gpu")
    if world() > 1:
        joined = watch(rank(), missing_ranks(), float(os.environ.get("PPSSL_INIT_TIMEOUT", 600)))
        dist.init_parallel_env()
        joined()
    return paddle.get_device()


def missing_ranks() -> str:
    """What to say when the ranks do not find each other."""
    return (f"the other ranks did not appear at {os.environ.get('PADDLE_MASTER')} (endpoints "
            f"{os.environ.get('PADDLE_TRAINER_ENDPOINTS')}): see workerlog.* of every node in {os.environ.get('PADDLE_LOG_DIR', 'the log folder')}; "
            "on hosts with several network interfaces set NCCL_SOCKET_IFNAME (GPU) or GLOO_SOCKET_IFNAME (CPU)")


def barrier(timeout: float = 3600.0) -> None:
    """Wait until all ranks are here, for up to `timeout` seconds.

    GLOO gives up after 30 seconds whatever it waits for, so ranks meet at the store first. Every rank has to call
    this the same number of times. Raises TrainingFailed when the time is over.
    """
    if world() == 1:
        return
    from paddle.base import core

    store, key, start_time = core.create_or_get_global_tcp_store(), f"ppssl/barrier/{next(_tags)}", time.monotonic()
    store.add(key, 1)
    while store.add(key, 0) < world():
        if time.monotonic() - start_time > timeout:
            raise TrainingFailed(f"rank {rank()} waited {timeout:.0f} s for the others: one of them is stuck or gone")
        time.sleep(0.01)


def sum_over_ranks(tensor):
    """The sum of a tensor over all ranks, in place."""
    if world() > 1:
        dist.all_reduce(tensor)
    return tensor


def gather_rows(tensor):
    """Rows [n, ...] of all ranks, one rank's after another's; the numbers of rows may differ."""
    if world() == 1:
        return tensor
    counts: list = []
    dist.all_gather(counts, paddle.to_tensor([tensor.shape[0]]))
    counts = [c.item() for c in counts]
    padding = paddle.zeros([max(counts) - tensor.shape[0], *tensor.shape[1:]], tensor.dtype)
    parts: list = []
    dist.all_gather(parts, paddle.concat([tensor, padding]))
    return paddle.concat([part[:n] for part, n in zip(parts, counts)])


def gather_objects(value) -> list:
    """Every rank's plain Python value, by rank."""
    if world() == 1:
        return [value]
    values: list = []
    dist.all_gather_object(values, value)
    return values


def hand_out(owned: list[tuple]) -> None:
    """Give each (tensor, rank) the values it has on that rank, in place, on all ranks."""
    if world() > 1:
        for task in [dist.broadcast(tensor, src=owner, sync_op=False) for tensor, owner in owned]:
            task.wait()


def any_rank(bad, stop: bool) -> tuple:
    """(0-d bool tensor: `bad` holds on some rank, 0-d float tensor: 1 where `stop` holds on some rank)."""
    flags = paddle.stack([bad.astype("float32"), paddle.full([], float(stop))])
    sum_over_ranks(flags)
    return flags[0] > 0, flags[1]


class Replica:
    """How the model runs on this rank: directly, or through DataParallel, which averages gradients over the ranks.

    DataParallel sums gradients as they lie in memory, whatever their strides. Those of transposed weights are strided, and
    would come out in the wrong places, so each is laid out first.
    """

    def __init__(self, model):
        self._wrapped = paddle.DataParallel(model) if world() > 1 else model
        for p in model.parameters() if world() > 1 else ():
            if not p.stop_gradient:
                p.register_hook(lambda gradient: gradient.contiguous())

    def __call__(self, *args, **kwargs):
        return self._wrapped(*args, **kwargs)

    def local_gradients(self):
        """Context in which backward passes stay on this rank: all micro-batches but the last of a step."""
        return self._wrapped.no_sync() if world() > 1 else contextlib.nullcontext()
