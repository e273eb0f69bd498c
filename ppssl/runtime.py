"""What has to be set in a process before Paddle is imported."""
import contextlib
import ctypes
import os
import sys
import warnings
import zlib  # noqa: F401 - Paddle 2.6 has a zlib of its own under the same names, with which Python's (scipy's, numba's) crashes if it comes later

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3               # glibc malloc.h
VARIABLES = ("MKL_DEBUG_CPU_TYPE", "MKL_NUM_THREADS", "MKL_DYNAMIC", "GLOG_minloglevel")      # that `prepare` sets


def prepare() -> None:
    """Choose the fast matrix kernels on AMD processors, use this rank's cores, quiet Paddle's start-up noise.

    Paddle's wheel ships an Intel MKL that takes a slow path on processors of other makers: `MKL_DEBUG_CPU_TYPE=5` selects
    its AVX2 kernels there (more than twice the speed of a training step). Paddle also starts with one thread, so the
    cores are shared out to the ranks of this machine; MKL_DYNAMIC is off because a number of threads that changes
    with the machine's load would change results in the last bit. All of it only works before Paddle is loaded, and what
    the user has set is left alone. `GLOG_minloglevel=2` drops the C++ info lines.
    """
    if "paddle" in sys.modules and "MKL_DEBUG_CPU_TYPE" not in os.environ and is_amd():
        warnings.warn("import ppssl before paddle: on this AMD processor Paddle runs at half speed otherwise")
    if is_amd():
        os.environ.setdefault("MKL_DEBUG_CPU_TYPE", "5")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    os.environ.setdefault("MKL_NUM_THREADS", str(max(1, cores // int(os.environ.get("PADDLE_LOCAL_SIZE", 1)))))
    os.environ.setdefault("MKL_DYNAMIC", "FALSE")
    os.environ.setdefault("GLOG_minloglevel", "2")
    keep_freed_memory()
    warnings.filterwarnings("ignore", message="No ccache found")


def keep_freed_memory() -> None:
    """Let glibc keep large freed blocks instead of returning them to the kernel.

    Every activation is a block of its own: mapping and clearing it anew in each step takes about a seventh of the step.
    """
    with contextlib.suppress(OSError, AttributeError):    # another C library: its own policy stands
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(M_TRIM_THRESHOLD, 2 ** 31 - 1)


def is_amd() -> bool:
    """True on an AMD processor (Linux only: elsewhere the variable is not needed or not known to help)."""
    try:
        with open("/proc/cpuinfo") as f:
            return any("AuthenticAMD" in line for line in f)
    except OSError:
        return False
