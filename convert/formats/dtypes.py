"""Which element types there are, what each format calls them, and the bytes of an array."""

from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from .errors import Refused


class ElementType(NamedTuple):
    dtype: np.dtype
    safetensors: str | None
    torch_storage: str | None  # None: neither PyTorch storages nor Paddle tensors of this type


BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
BITS = {1: np.uint8, 2: np.uint16, 4: np.int32, 8: np.float64}  # a type of OpenCV's for elements of each size, moved as they are

ELEMENT_TYPES = [
    ElementType(np.dtype(np.float64), "F64", "DoubleStorage"),
    ElementType(np.dtype(np.float32), "F32", "FloatStorage"),
    ElementType(np.dtype(np.float16), "F16", "HalfStorage"),
    ElementType(BFLOAT16, "BF16", "BFloat16Storage"),
    ElementType(np.dtype(np.int64), "I64", "LongStorage"),
    ElementType(np.dtype(np.int32), "I32", "IntStorage"),
    ElementType(np.dtype(np.int16), "I16", "ShortStorage"),
    ElementType(np.dtype(np.int8), "I8", "CharStorage"),
    ElementType(np.dtype(np.uint8), "U8", "ByteStorage"),
    ElementType(np.dtype(np.bool_), "BOOL", "BoolStorage"),
    ElementType(np.dtype(np.complex64), "C64", "ComplexFloatStorage"),
    ElementType(np.dtype(np.complex128), None, "ComplexDoubleStorage"),
    ElementType(np.dtype(np.uint64), "U64", None),
    ElementType(np.dtype(np.uint32), "U32", None),
    ElementType(np.dtype(np.uint16), "U16", None),
]

SAFETENSORS_CODES = {row.dtype: row.safetensors for row in ELEMENT_TYPES if row.safetensors}
TORCH_STORAGES = {row.dtype: row.torch_storage for row in ELEMENT_TYPES if row.torch_storage}


def native(dtype: np.dtype) -> np.dtype:
    return dtype.newbyteorder("=")


def require_tensor(value: Any, where: str, known: dict[np.dtype, str], framework: str) -> np.ndarray:
    """`value` itself. Raises Refused unless it is an array of an element type that `known` has as a key."""
    if not isinstance(value, np.ndarray):
        kind = type(value).__name__
        raise Refused(f"cannot write {where}: a {kind} is neither an array nor a plain value; convert it")
    if native(value.dtype) not in known:
        raise Refused(f"cannot write {where}: {framework} has no {value.dtype.name} tensors; convert its type")
    return value


def in_order(array: np.ndarray) -> np.ndarray:
    """The array in C order: itself where it lies so already, else a copy.

    A transposed matrix is copied by OpenCV, which takes a quarter of numpy's time.
    """
    turned = array.T
    if array.flags.c_contiguous or array.ndim != 2 or not turned.flags.c_contiguous or array.itemsize not in BITS:
        return np.asarray(array, order="C")
    import cv2

    return cv2.transpose(turned.view(BITS[array.itemsize])).view(array.dtype)


def raw_bytes(array: np.ndarray) -> memoryview:
    """The elements in C order and little-endian, as bytes: a view where the array lies so already, else one copy."""
    flat = in_order(np.asarray(array, dtype=array.dtype.newbyteorder("<"))).reshape(-1)
    return flat.view(np.uint8).data
