"""A small process beside each rank that says what the rank itself no longer can.

Joining the ranks waits in C++ and holds the interpreter's lock, and a rank that is killed, or that Paddle aborts because another
one is gone, leaves no message: neither a thread nor a signal handler of the rank would run.
"""
import atexit
import os
import signal
import time
from collections.abc import Callable

POLL = 0.2                                                # seconds
JOINED, DONE = b"j", b"d"


def watch(rank: int, missing: str, timeout: float) -> Callable[[], None]:
    """Start the witness of this process; returns what to call once the ranks have found each other.

    After `timeout` seconds without that call it prints `missing` and ends this process; when the process dies without
    leaving Python's normal way, it says so with the time, so that the first rank to die can be told from those it took along.
    """
    process = os.getpid()
    inbox, outbox = os.pipe()
    if os.fork() == 0:
        os.set_blocking(inbox, False)
        _observe(process, inbox, f"error (rank {rank}): ", missing, timeout)
        os._exit(0)
    os.close(inbox)
    atexit.register(_tell, process, outbox, DONE)
    return lambda: _tell(process, outbox, JOINED)


def _tell(process: int, outbox: int, word: bytes) -> None:
    if os.getpid() == process:                            # not from forked data workers
        os.write(outbox, word)


def _observe(process: int, inbox: int, prefix: str, missing: str, timeout: float) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    end, said = time.monotonic() + timeout, b""
    while os.getppid() == process:
        time.sleep(POLL)
        said += _read(inbox)
        if JOINED not in said and time.monotonic() > end:
            _print(f"{prefix}{missing} (waited {timeout:.0f} s)")
            return os.kill(process, signal.SIGKILL)
    if DONE not in said + _read(inbox):
        _print(f"{prefix}ended without a word at {time.strftime('%H:%M:%S')} (killed, out of memory, or another rank was gone first)")


def _read(inbox: int) -> bytes:
    try:
        return os.read(inbox, 16)
    except BlockingIOError:
        return b""


def _print(line: str) -> None:
    os.write(2, f"{line}\n".encode())
