"""Compiled loops over rows of float32, in place where they can be. Importing this module compiles or loads them all.

Paddle's own CPU kernels of these take a library call per row, or several passes over memory by one thread: with two
threads its softmax takes 15 ms where this one takes 2, its GELU's backward pass 6 ms where this one takes 1.
"""
import math

import numba as nb
import numpy as np

from ppssl.compiled import FAST, compiled

f32 = nb.float32
MAPS, ROWS, VECTOR = f32[:, :, ::1], f32[:, ::1], f32[::1]
INDEX = nb.int64

LOG2_E = f32(math.log2(math.e))
LN2_HIGH, LN2_LOW = f32(0.693359375), f32(-2.12194440e-4)    # together ln 2
LOWEST_EXP = f32(-87.0)                                   # e**-87 is about the smallest normal float32
ERF_EDGE = f32(3.832506856900711)                         # erf is 1 in float32 beyond it
ROOT_HALF = f32(math.sqrt(0.5))
NORMAL_PEAK = f32(1 / math.sqrt(2 * math.pi))
HALF, ONE = f32(0.5), f32(1.0)


@nb.njit(inline="always")
def exp(x):
    """e**x for x <= 0, to about 1e-7 relative. Source: Cephes `expf.c`, its range reduction and polynomial."""
    x = LOWEST_EXP if x < LOWEST_EXP else x
    power = np.floor(x * LOG2_E + HALF)
    r = x - power * LN2_HIGH - power * LN2_LOW
    p = f32(1.9875691500e-4)
    p = p * r + f32(1.3981999507e-3)
    p = p * r + f32(8.3334519073e-3)
    p = p * r + f32(4.1665795894e-2)
    p = p * r + f32(1.6666665459e-1)
    p = p * r + f32(5.0000001201e-1)
    return (p * r * r + r + ONE) * np.int32((np.int32(power) + np.int32(127)) << np.int32(23)).view(np.float32)


@nb.njit(inline="always")
def normal_share(x):
    """The standard normal distribution function of x, to about 1e-7: erf as a quotient of polynomials.

    Source of the coefficients: Eigen `MathFunctionsImpl.h`, `generic_fast_erf_float`.
    """
    x = x * ROOT_HALF
    x = -ERF_EDGE if x < -ERF_EDGE else ERF_EDGE if x > ERF_EDGE else x
    square = x * x
    over = f32(2.2905065861350646e-4)
    over = over * square + f32(3.4082910107109506e-3)
    over = over * square + f32(5.0955695062380861e-2)
    over = over * square + f32(1.8520832239976145e-1)
    over = over * square + f32(1.1283791435190840)
    under = f32(-1.1791602954361697e-7)
    under = under * square + f32(2.3547966471313185e-5)
    under = under * square + f32(1.0179625278914885e-3)
    under = under * square + f32(1.4070470171167667e-2)
    under = under * square + f32(1.1098505178285362e-1)
    under = under * square + f32(4.9746925110067538e-1)
    under = under * square + ONE
    return HALF + HALF * (x * over / under)


@compiled(nb.void(VECTOR, VECTOR), **FAST)
def gelu(x, y):
    """y = x * Phi(x)."""
    for i in range(x.size):
        y[i] = x[i] * normal_share(x[i])


@compiled(nb.void(VECTOR, VECTOR, VECTOR), **FAST)
def gelu_grad(x, dy, dx):
    for i in range(x.size):
        v = x[i]
        dx[i] = dy[i] * (normal_share(v) + v * NORMAL_PEAK * exp(-HALF * v * v))


@compiled(nb.void(ROWS, f32), **FAST)
def softmax(x, scale):
    """Every row becomes softmax(scale * row), scale > 0."""
    for row in x:
        highest = row[0]
        for j in range(row.size):
            highest = row[j] if row[j] > highest else highest
        total = f32(0.0)
        for j in range(row.size):
            row[j] = exp((row[j] - highest) * scale)
            total += row[j]
        share = ONE / total
        for j in range(row.size):
            row[j] *= share


@compiled(nb.void(ROWS, ROWS, f32), **FAST)
def softmax_grad(y, dy, scale):
    """The gradient dy for the output y of `softmax` becomes that for its input."""
    for i in range(y.shape[0]):
        row, drow = y[i], dy[i]
        along = f32(0.0)
        for j in range(row.size):
            along += row[j] * drow[j]
        for j in range(row.size):
            drow[j] = row[j] * (drow[j] - along) * scale


@compiled(nb.void(VECTOR, VECTOR, f32, f32), **FAST)
def blend(x, other, share, other_share):
    """x = share * x + other_share * other."""
    for i in range(x.size):
        x[i] = share * x[i] + other_share * other[i]


@compiled(nb.void(ROWS, VECTOR), **FAST)
def add_to_rows(x, bias):
    for row in x:
        for j in range(row.size):
            row[j] += bias[j]


@compiled(nb.void(ROWS, VECTOR, VECTOR, f32, ROWS, VECTOR, VECTOR), **FAST)
def layer_norm(x, weight, bias, eps, y, mean, inv_std):
    """Of every row: y, its mean and 1 / sqrt(variance + eps)."""
    for i in range(x.shape[0]):
        row, out = x[i], y[i]
        total = f32(0.0)
        for j in range(row.size):
            total += row[j]
        m = total / f32(row.size)
        squares = f32(0.0)
        for j in range(row.size):
            squares += (row[j] - m) * (row[j] - m)
        s = ONE / np.sqrt(squares / f32(row.size) + eps)
        for j in range(row.size):
            out[j] = (row[j] - m) * s * weight[j] + bias[j]
        mean[i], inv_std[i] = m, s


@compiled(nb.float64[:, ::1](ROWS, VECTOR, VECTOR, VECTOR, ROWS, ROWS), **FAST)
def layer_norm_grad(x, weight, mean, inv_std, dy, dx):
    """Fills dx; returns the gradients of weight and bias, [2, N]."""
    sums = np.zeros((2, x.shape[1]))
    along_rows, rows = sums[0], sums[1]
    for i in range(x.shape[0]):
        row, drow, out, m, s = x[i], dy[i], dx[i], mean[i], inv_std[i]
        first, second = f32(0.0), f32(0.0)
        for j in range(row.size):
            normed = (row[j] - m) * s
            first += drow[j] * weight[j]
            second += drow[j] * weight[j] * normed
            along_rows[j] += drow[j] * normed
            rows[j] += drow[j]
        first, second = first / f32(row.size), second / f32(row.size)
        for j in range(row.size):
            out[j] = (drow[j] * weight[j] - first - (row[j] - m) * s * second) * s
    return sums


@compiled(nb.void(MAPS, VECTOR, VECTOR, INDEX, INDEX), **FAST)
def moments(x, mean, squares, first, last):
    """Of the channels [first, last) of x [B, C, P]: the mean and the sum of squared distances from it."""
    for c in range(first, last):
        m, total = 0.0, 0.0
        for b in range(x.shape[0]):                       # Chan, Golub and LeVeque: statistics of one map join those of the maps before
            row = x[b, c]
            sum_ = f32(0.0)
            for j in range(row.size):
                sum_ += row[j]
            own = sum_ / f32(row.size)
            spread = f32(0.0)
            for j in range(row.size):
                spread += (row[j] - own) * (row[j] - own)
            step = own - m
            m += step / (b + 1)
            total += spread + step * step * row.size * b / (b + 1)
        mean[c], squares[c] = m, total


@compiled(nb.void(MAPS, VECTOR, VECTOR, VECTOR, VECTOR, MAPS, f32, MAPS, INDEX, INDEX), **FAST)
def batch_norm(x, mean, inv_std, weight, bias, shortcut, lowest, y, first, last):
    """y = max(lowest, normalised x + shortcut), the shortcut unless it is empty, of the channels [first, last) of [B, C, P]."""
    for b in range(x.shape[0]):
        for c in range(first, last):
            row, out, m, s, shift = x[b, c], y[b, c], mean[c], inv_std[c] * weight[c], bias[c]
            if shortcut.size:
                add = shortcut[b, c]
                for j in range(row.size):
                    value = (row[j] - m) * s + shift + add[j]
                    out[j] = lowest if value < lowest else value
            else:
                for j in range(row.size):
                    value = (row[j] - m) * s + shift
                    out[j] = lowest if value < lowest else value


@compiled(nb.void(MAPS, VECTOR, VECTOR, MAPS, f32, MAPS, VECTOR, VECTOR, INDEX, INDEX), **FAST)
def batch_norm_sums(x, mean, inv_std, y, lowest, dy, along, across, first, last):
    """Sums over the channels [first, last) of dy where y > lowest, and of its products with the normalised x."""
    for c in range(first, last):
        m, s = mean[c], inv_std[c]
        total, product = 0.0, 0.0
        for b in range(x.shape[0]):
            row, out, drow = x[b, c], y[b, c], dy[b, c]
            own, own_product = f32(0.0), f32(0.0)
            for j in range(row.size):
                d = f32(0.0) if out[j] <= lowest else drow[j]
                own += d
                own_product += d * (row[j] - m) * s
            total += own
            product += own_product
        along[c], across[c] = total, product


@compiled(nb.void(MAPS, VECTOR, VECTOR, VECTOR, MAPS, f32, MAPS, VECTOR, VECTOR, MAPS, MAPS, INDEX, INDEX), **FAST)
def batch_norm_grad(x, mean, inv_std, weight, y, lowest, dy, along, across, dx, dshortcut, first, last):
    """dx, and dshortcut unless it is empty; along, across: the means of what `batch_norm_sums` adds up."""
    for b in range(x.shape[0]):
        for c in range(first, last):
            row, out, drow, into, m, s, w, first_mean, second_mean = (x[b, c], y[b, c], dy[b, c], dx[b, c], mean[c], inv_std[c],
                                                                      inv_std[c] * weight[c], along[c], across[c])
            for j in range(row.size):
                d = f32(0.0) if out[j] <= lowest else drow[j]
                into[j] = (d - first_mean - (row[j] - m) * s * second_mean) * w
            if dshortcut.size:
                into = dshortcut[b, c]
                for j in range(row.size):
                    into[j] = f32(0.0) if out[j] <= lowest else drow[j]


@compiled(nb.void(MAPS, VECTOR, VECTOR, MAPS, f32, MAPS, f32, VECTOR, VECTOR, INDEX, INDEX), **FAST)
def batch_norm_alone(x, weight, bias, shortcut, lowest, y, eps, mean, inv_std, first, last):
    """`moments`, inv_std and `batch_norm` channel by channel, which stays in the processor's cache: for a rank without others."""
    for c in range(first, last):
        moments(x, mean, inv_std, c, c + 1)
        inv_std[c] = ONE / np.sqrt(inv_std[c] / f32(x.shape[0] * x.shape[2]) + eps)
        batch_norm(x, mean, inv_std, weight, bias, shortcut, lowest, y, c, c + 1)


@compiled(nb.void(MAPS, VECTOR, VECTOR, VECTOR, MAPS, f32, MAPS, VECTOR, VECTOR, MAPS, MAPS, INDEX, INDEX), **FAST)
def batch_norm_grad_alone(x, mean, inv_std, weight, y, lowest, dy, along, across, dx, dshortcut, first, last):
    """`batch_norm_sums` and `batch_norm_grad` channel by channel; along, across: the sums."""
    share = ONE / f32(x.shape[0] * x.shape[2])
    means = np.empty((2, weight.size), np.float32)
    for c in range(first, last):
        batch_norm_sums(x, mean, inv_std, y, lowest, dy, along, across, c, c + 1)
        means[0, c], means[1, c] = along[c] * share, across[c] * share
        batch_norm_grad(x, mean, inv_std, weight, y, lowest, dy, means[0], means[1], dx, dshortcut, c, c + 1)
