"""The memory of CPU tensors as NumPy arrays, for compiled loops that read and write it."""
import ctypes
import math

import numpy as np
import paddle


def has_own(x) -> bool:
    """Whether the compiled loops can be used on x: a float32 tensor on CPU, and no program is being traced."""
    return paddle.in_dynamic_mode() and x.place.is_cpu_place() and x.dtype == paddle.float32


def vector(x) -> np.ndarray:
    """The memory of a contiguous float32 CPU tensor, as an array to read and write. It keeps the tensor alive."""
    memory = (ctypes.c_float * math.prod(x.shape)).from_address(x.data_ptr())           # x.size takes 20 us
    memory.owner = x
    return np.frombuffer(memory, np.float32)


def array(x) -> np.ndarray:
    """`vector` in the tensor's shape."""
    return vector(x).reshape(x.shape)


def rows(x) -> np.ndarray:
    """`vector` as [M, last axis]."""
    return vector(x).reshape(-1, x.shape[-1])
