"""Comparing our random draws with stated statistics of the official ones: both are samples of about equal size."""
import math

import numpy as np

from tests.golden.runner import Check

ERRORS = 5                                                # standard errors of the difference that are allowed


def within(difference: float, error: float) -> Check:
    off = abs(float(difference))
    return Check(bool(off <= ERRORS * error), off, 0.0, f"{ERRORS} standard errors ({error:.2g})")


def mean(values: np.ndarray, theirs: float, n_theirs: int | None) -> Check:
    """Means of ours and of a sample of n_theirs (None: the exact expectation)."""
    return within(values.mean() - theirs, values.std() * math.sqrt(1 / len(values) + (1 / n_theirs if n_theirs else 0)))


def deviation(values: np.ndarray, theirs: float, n_theirs: int) -> Check:
    """Standard deviations; their error follows from the fourth moment."""
    centred = values - values.mean()
    variance = (centred ** 2).mean()
    spread = math.sqrt(max((centred ** 4).mean() - variance ** 2, 0)) / (2 * math.sqrt(variance))
    return within(values.std() - theirs, spread * math.sqrt(1 / len(values) + 1 / n_theirs))


def fraction(ours: float, theirs: float, n: int) -> Check:
    """Shares of n draws each; rare events count as at least one."""
    p = max((ours + theirs) / 2, 1 / n)
    return within(ours - theirs, math.sqrt(2 * p * max(1 - p, 1 / n) / n))


def not_below(values: np.ndarray, smallest: float) -> Check:
    """Of ours only a few may lie below the smallest of theirs: k of them do with probability 2**-k."""
    below = int((values < smallest - 1e-12).sum())
    return Check(below < 30, float(below), 0.0, "fewer than 30 beyond")


def histogram(theirs: np.ndarray, values: np.ndarray, rule: dict) -> Check:
    """Chi-square of two samples over the bins that either uses, below df + 6 sqrt(2 df)."""
    ours = np.histogram(values, rule["bins"], tuple(rule["range"]))[0]
    used = (ours + theirs) > 0
    a, b, df = ours[used], theirs[used], max(int(used.sum()) - 1, 1)
    ratio = math.sqrt(b.sum() / a.sum())
    chi2 = float((((a * ratio - b / ratio) ** 2) / (a + b)).sum())
    return Check(chi2 < df + 6 * math.sqrt(2 * df), chi2, 0.0, f"chi2 < {df + 6 * math.sqrt(2 * df):.0f}")


def moments(values: dict[str, np.ndarray], stated: dict[str, float], n: int, prefix: str = "") -> dict[str, Check]:
    """Checks of every stated '<name>_mean' and '<name>_std' over n draws; any other statistic is not understood."""
    out = {}
    for key, theirs in stated.items():
        name, _, kind = key.rpartition("_")
        if name not in values or kind not in ("mean", "std"):
            raise ValueError(f"a statistic this adapter does not understand: {key}")
        out[f"json/{prefix}{key}"] = (mean if kind == "mean" else deviation)(values[name], theirs, n)
    return out
