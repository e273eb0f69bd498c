"""Compiled loops over pixels, equal bit for bit to Pillow's C code. Importing this module compiles or loads them all.

The reference is Pillow 9.5 to 12.3 (`src/libImaging/Resample.c`, `Convert.c`, `Blend.c`), whose arithmetic is
reproduced here operation by operation: where it rounds to float32 or truncates, so do these loops.
"""
import math

import numba as nb
import numpy as np

from ppssl.compiled import compiled

WEIGHT_BITS = 22                                          # fixed-point fraction of a resampling weight
HALF = 1 << (WEIGHT_BITS - 1)

f32, f64, i32, u8 = nb.float32, nb.float64, nb.int32, nb.uint8
PIXELS = nb.types.Array(u8, 2, "C", readonly=True)        # [N, 3], or rows [H, W*3]
INDEX = nb.types.Array(i32, 1, "C", readonly=True)
WEIGHTS = nb.types.Array(i32, 2, "C", readonly=True)


@nb.njit(inline="always")
def filter_value(x, cubic):
    """Keys' bicubic kernel with a = -0.5, or the triangle, at distance x >= 0."""
    if not cubic:
        return max(1.0 - x, 0.0)
    if x < 1.0:
        return (1.5 * x - 2.5) * x * x + 1.0
    if x < 2.0:
        return (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5
    return 0.0


@compiled(nb.types.Tuple((i32[::1], i32[::1], i32[:, ::1]))(nb.int64, nb.int64, nb.boolean))
def resampling_weights(n_in, n_out, cubic):
    """first [n_out], count [n_out] and weights [n_out, taps] of each output position, antialiased when shrinking.

    The weights are integers that sum to about 2**22.
    """
    scale = n_in / n_out
    stretch = max(scale, 1.0)
    support = (2.0 if cubic else 1.0) * stretch
    taps = int(math.ceil(support)) * 2 + 1
    first, count = np.empty(n_out, np.int32), np.empty(n_out, np.int32)
    weights = np.zeros((n_out, taps), np.int32)
    exact = np.empty(taps, np.float64)
    for o in range(n_out):
        centre = (o + 0.5) * scale
        begin = max(int(centre - support + 0.5), 0)
        end = min(int(centre + support + 0.5), n_in)
        total = 0.0
        for k in range(end - begin):
            exact[k] = filter_value(abs((k + begin - centre + 0.5) * (1.0 / stretch)), cubic)
            total += exact[k]
        for k in range(end - begin):
            value = exact[k] / total * (1 << WEIGHT_BITS)
            weights[o, k] = int(value - 0.5) if value < 0 else int(value + 0.5)
        first[o], count[o] = begin, end - begin
    return first, count, weights


@compiled(nb.void(PIXELS, INDEX, INDEX, WEIGHTS, u8[:, ::1]))
def combine_rows(rows, first, count, weights, out):
    """out[o] = sum over k of weights[o, k] * rows[first[o] + k], rounded and clipped to 0..255."""
    length = rows.shape[1]
    total = np.empty(length, np.int32)
    for o in range(out.shape[0]):
        total[:] = HALF
        for k in range(count[o]):
            weight, row = weights[o, k], rows[first[o] + k]
            for m in range(length):
                total[m] += weight * i32(row[m])
        for m in range(length):
            out[o, m] = min(max(total[m] >> WEIGHT_BITS, 0), 255)


@nb.njit(inline="always")
def luma(red, green, blue):
    """ITU-R 601 gray level of a pixel in 16-bit fixed point."""
    return (i32(19595) * red + i32(38470) * green + i32(7471) * blue + i32(32768)) >> 16


@compiled(nb.int64(PIXELS))
def luma_sum(pixels):
    """Sum of the gray levels of pixels [N, 3]."""
    total = 0
    for n in range(pixels.shape[0]):
        total += luma(pixels[n, 0], pixels[n, 1], pixels[n, 2])
    return total


@compiled(nb.void(PIXELS, f32, u8[:, ::1]))
def saturate(pixels, factor, out):
    """Blend of each pixel's gray level (factor 0) with the pixel (factor 1), truncated and clipped."""
    for n in range(pixels.shape[0]):
        gray = luma(pixels[n, 0], pixels[n, 1], pixels[n, 2])
        for c in range(3):
            value = f32(gray) + factor * f32(i32(pixels[n, c]) - gray)
            out[n, c] = u8(min(max(value, f32(0)), f32(255)))


@nb.njit(inline="always")
def to_hsv(red, green, blue, high, low):
    """Hue and saturation 0..255 of a pixel that is not gray; high and low are its largest and smallest value."""
    chroma = f32(high - low)
    r, g, b = f32(high - red) / chroma, f32(high - green) / chroma, f32(high - blue) / chroma
    if red == high:
        hue = f32(b - g)
    elif green == high:
        hue = f32(2.0 + r - b)
    else:
        hue = f32(4.0 + g - r)
    turn = hue / 6.0 + 1.0
    turn = f32(turn - 1.0 if turn >= 1.0 else turn)
    return int(turn * 255.0), int(chroma / f32(high) * 255.0)


@nb.njit(inline="always")
def from_hsv(sector, fraction, saturation, value):
    """RGB of a colour in one of the hue circle's six sectors: fraction and saturation 0..1, value 0..255."""
    v = f32(value)
    p = u8(v * (1.0 - saturation) + 0.5)
    q = u8(v * (1.0 - f32(saturation * fraction)) + 0.5)
    t = u8(v * (1.0 - saturation * (1.0 - fraction)) + 0.5)
    if sector == 0:
        return value, t, p
    if sector == 1:
        return q, value, p
    if sector == 2:
        return p, value, t
    if sector == 3:
        return p, q, value
    if sector == 4:
        return t, p, value
    return value, p, q


@compiled(nb.void(PIXELS, i32, u8[:, ::1]))
def shift_hue(pixels, shift, out):
    """RGB to 8-bit HSV, hue + shift modulo 256, and back; the rounding alters pixels even at shift 0."""
    sector, fraction, unit = np.empty(256, np.int32), np.empty(256, np.float32), np.empty(256, np.float32)
    for v in range(256):
        position = v * 6.0 / 255.0
        sector[v] = int(position) % 6
        fraction[v] = f32(position - int(position))
        unit[v] = f32(v / 255.0)
    for n in range(pixels.shape[0]):
        red, green, blue = pixels[n, 0], pixels[n, 1], pixels[n, 2]
        high, low = max(red, max(green, blue)), min(red, min(green, blue))
        saturation = 0
        if high != low:
            hue, saturation = to_hsv(red, green, blue, high, low)
        if saturation == 0:
            out[n, 0] = out[n, 1] = out[n, 2] = high
        else:
            hue = (hue + shift) & 255
            out[n, 0], out[n, 1], out[n, 2] = from_hsv(sector[hue], fraction[hue], unit[saturation], high)


@compiled(nb.void(u8[:, :, ::1], f32[:, ::1], f32[:, :, ::1]))
def lookup(images, levels, out):
    """images [B, N, C], levels [256, C] -> out [B, C, N], each value replaced by its channel's level."""
    for b in range(images.shape[0]):
        for c in range(images.shape[2]):
            for i in range(images.shape[1]):
                out[b, c, i] = levels[images[b, i, c], c]
