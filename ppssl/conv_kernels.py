"""Convolutions as matrix products over windows, image by image, by compiled loops that call MKL.

Importing this module needs the MKL that comes with Paddle on x86: see `threads.library`. Windows are laid out for a few
rows of an image at a time, which stay in a core's own cache, and several such loops run at once over a batch.
"""
import ctypes

import llvmlite.binding
import numba as nb
import numpy as np

from ppssl.compiled import FAST, compiled
from ppssl.threads import library

f32, i32, count = nb.float32, nb.int32, nb.uint64         # an unsigned index cannot count from the end: loops stay vectors
MATRIX, IMAGE, IMAGES = f32[:, ::1], f32[:, :, ::1], f32[:, :, :, ::1]
SIZE = nb.int64

llvmlite.binding.add_symbol("ppssl_sgemm", ctypes.cast(library("libmklml_intel.so").cblas_sgemm, ctypes.c_void_p).value)
sgemm = nb.types.ExternalFunction("ppssl_sgemm", nb.void(*[i32] * 6, f32, nb.uintp, i32, nb.uintp, i32, f32, nb.uintp, i32))
ROW_MAJOR, AS_IS, TRANSPOSED = 101, 111, 112              # of cblas.h
POSITIONS = 256                                           # windows that are laid out at a time, about: enough for fast products


@nb.njit(inline="always")
def multiply(a, a_form, b, b_form, keep, c):
    """c = keep * c + a @ b, of matrices [rows, columns, whose rows need not follow each other] taken as they are or transposed."""
    inner = a.shape[1] if a_form == AS_IS else a.shape[0]
    sgemm(ROW_MAJOR, a_form, b_form, c.shape[0], c.shape[1], inner, f32(1.0), a.ctypes.data, a.strides[0] // 4,
          b.ctypes.data, b.strides[0] // 4, keep, c.ctypes.data, c.strides[0] // 4)


@nb.njit(inline="always")
def inside(size, outputs, offset, stride):
    """[first, last) of the outputs whose window has its row or column `offset` inside an image of that size."""
    first = max(0, (stride - 1 - offset) // stride)
    last = min(outputs, (size - 1 - offset) // stride + 1)
    return min(first, outputs), max(last, min(first, outputs))


@nb.njit(inline="always")
def geometry(line, image, windows, kernel, stride, padding, first):
    """Of a line of windows: its channel, row and column offset, and which of its rows and columns lie inside the image."""
    u, v = line // kernel % kernel - padding + first * stride, line % kernel - padding
    top, bottom = inside(image.shape[1], windows.shape[1], u, stride)
    left, right = inside(image.shape[2], windows.shape[2], v, stride)
    return line // (kernel * kernel), u, v, top, bottom, left, right


@nb.njit(inline="always")
def are_windows(kernel, stride, padding):
    """Whether the images are their own windows."""
    return kernel == stride == 1 and padding == 0


@compiled(nb.void(IMAGE, SIZE, SIZE, SIZE, SIZE, IMAGE), **FAST)
def lay_out(image, kernel, stride, padding, first, windows):
    """image [C, H, W] -> windows [C * kernel * kernel, rows, W'] of the output rows from `first` on, zero outside the image."""
    for line in range(len(windows)):
        c, u, v, top, bottom, left, right = geometry(line, image, windows, kernel, stride, padding, first)
        windows[line, :top] = 0
        windows[line, bottom:] = 0
        for i in range(top, bottom):
            seen, pixels = windows[line, i], image[c, i * stride + u]
            for j in range(count(left)):
                seen[j] = 0
            for j in range(count(right), count(seen.size)):
                seen[j] = 0
            seen, pixels = seen[left:right], pixels[left * stride + v:]
            if stride == 1:
                for j in range(count(right - left)):
                    seen[j] = pixels[j]
            else:
                for j in range(count(right - left)):
                    seen[j] = pixels[j * count(stride)]


@compiled(nb.void(IMAGE, SIZE, SIZE, SIZE, SIZE, IMAGE), **FAST)
def add_back(windows, kernel, stride, padding, first, image):
    """The transpose of `lay_out`: what its windows hold is added where it came from."""
    for line in range(len(windows)):
        c, u, v, top, bottom, left, right = geometry(line, image, windows, kernel, stride, padding, first)
        for i in range(top, bottom):
            seen, pixels = windows[line, i, left:right], image[c, i * stride + u, left * stride + v:]
            if stride == 1:
                for j in range(count(right - left)):
                    pixels[j] += seen[j]
            else:
                for j in range(count(right - left)):
                    pixels[j * count(stride)] += seen[j]


@compiled(nb.void(IMAGES, MATRIX, SIZE, SIZE, SIZE, IMAGES), **FAST)
def convolve(images, weight, kernel, stride, padding, maps):
    """images [B, C, H, W], weight [O, C * kernel * kernel] -> maps [B, O, H', W']."""
    batch, outputs, rows, columns = maps.shape
    if are_windows(kernel, stride, padding):
        for n in range(batch):
            multiply(weight, AS_IS, images[n].reshape(weight.shape[1], -1), AS_IS, f32(0.0), maps[n].reshape(outputs, -1))
        return
    step = min(rows, -(-POSITIONS // columns))
    room = np.empty(weight.shape[1] * step * columns, np.float32)
    for n in range(batch):
        for first in range(0, rows, step):
            last = min(first + step, rows)
            windows = room[:weight.shape[1] * (last - first) * columns].reshape(weight.shape[1], last - first, columns)
            lay_out(images[n], kernel, stride, padding, first, windows)
            multiply(weight, AS_IS, windows.reshape(weight.shape[1], -1), AS_IS, f32(0.0),
                     maps[n].reshape(outputs, -1)[:, first * columns:last * columns])


@compiled(MATRIX(IMAGES, MATRIX, SIZE, SIZE, SIZE, IMAGES, IMAGES), **FAST)
def convolve_grad(images, weight, kernel, stride, padding, dmaps, dimages):
    """Fills dimages [B, C, H, W], unless it is empty; returns the weight's gradient."""
    batch, outputs, rows, columns = dmaps.shape
    dweight = np.zeros_like(weight)
    if are_windows(kernel, stride, padding):
        for n in range(batch):
            along = dmaps[n].reshape(outputs, -1)
            multiply(along, AS_IS, images[n].reshape(weight.shape[1], -1), TRANSPOSED, f32(1.0), dweight)
            if dimages.size:
                multiply(weight, TRANSPOSED, along, AS_IS, f32(0.0), dimages[n].reshape(weight.shape[1], -1))
        return dweight
    step = min(rows, -(-POSITIONS // columns))
    room = np.empty(weight.shape[1] * step * columns, np.float32)
    for n in range(batch):
        if dimages.size:
            dimages[n] = 0
        for first in range(0, rows, step):
            last = min(first + step, rows)
            windows = room[:weight.shape[1] * (last - first) * columns].reshape(weight.shape[1], last - first, columns)
            flat, along = windows.reshape(weight.shape[1], -1), dmaps[n].reshape(outputs, -1)[:, first * columns:last * columns]
            lay_out(images[n], kernel, stride, padding, first, windows)
            multiply(along, AS_IS, flat, TRANSPOSED, f32(1.0), dweight)
            if dimages.size:
                multiply(weight, TRANSPOSED, along, AS_IS, f32(0.0), flat)
                add_back(windows, kernel, stride, padding, first, dimages[n])
    return dweight
