"""Runs golden cases and compares: one line per array, a case that is not compared in full fails."""
import importlib
import json
import traceback
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.golden.case import Case, find_cases

TOLERANCES = json.loads((Path(__file__).parent / "tolerances.json").read_text())
COMPARED = ("out", "grad", "trace", "final")
RESIZED = ("resized_crop", "eval_resize_crop", "eval_224_jpeg", "byol_views")


@dataclass(frozen=True)
class Check:
    """A comparison an adapter has made itself (distributions, facts that stand in case.json)."""
    ok: bool
    max_abs: float
    max_rel: float
    tolerance: str


def same(ours, theirs) -> Check:
    """Equality of a fact (lists, dicts, numbers) as a Check."""
    return Check(ours == theirs, 0.0 if ours == theirs else float("inf"), 0.0, "equal")


def run_case(case: Case) -> list[tuple[str, Check]]:
    """All comparisons of one case as (array name, Check); whatever cannot be compared is a failed Check."""
    try:
        adapter = importlib.import_module(f"tests.golden.adapters.{case.spec['family']}")
        results = adapter.KINDS[case.spec["kind"]](case)
    except Exception as error:                            # noqa: BLE001 - any failure of a case is that case's FAIL
        traceback.print_exc()
        return [(f"<{type(error).__name__}: {error}>", Check(False, np.inf, np.inf, "runs"))]
    rows = [(name, check) for name, check in results.items() if isinstance(check, Check)]
    return rows + [(name, compare(case, name, results)) for name in to_compare(case) if not isinstance(results.get(name), Check)]


def to_compare(case: Case) -> list[str]:
    """The stored arrays that the product has to reproduce."""
    skipped = set(case.spec.get("reference_only", []))
    return [n for n in case.arrays if n.split("/")[0] in COMPARED and n not in skipped]


def compare(case: Case, name: str, results: dict[str, np.ndarray]) -> Check:
    """One stored array against ours, undetermined rows left out, under the tolerance of its family, kind and prefix."""
    if name not in results:
        return Check(False, np.inf, np.inf, "not computed")
    golden, ours = case.arrays[name], np.asarray(results[name])
    if golden.shape != ours.shape:
        return Check(False, np.inf, np.inf, f"shape {ours.shape}, not {golden.shape}")
    keep = determined(case, name, golden)
    rule = tolerance(case, name, golden.dtype)
    scale = np.abs(golden[keep].astype(np.float64)).max(initial=0.0)
    difference = np.abs(ours[keep].astype(np.float64) - golden[keep].astype(np.float64))
    worst = difference.max(initial=0.0)
    if "rel_each" in rule:
        ok = bool((difference <= rule["rel_each"] * np.abs(golden[keep]) + rule["abs"]).all())
    else:
        ok = bool(worst <= rule["rel"] * scale + rule["abs"])          # a NaN on either side compares false
    return Check(ok, float(worst), float(worst / scale) if scale else 0.0, json.dumps(rule))


def determined(case: Case, name: str, golden: np.ndarray):
    """Index of the entries to compare: all but the case's undetermined rows along axis 0."""
    spans = case.spec.get("undetermined_rows", {}).get(name)
    if spans is None:
        return ...
    keep = np.ones(golden.shape[0], bool)
    for first, end in spans if isinstance(spans[0], list) else [spans]:
        keep[first:end] = False
    return keep


def tolerance(case: Case, name: str, dtype: np.dtype) -> dict[str, float]:
    """The allowed difference: by family, kind and longest array prefix; 'default' where a level has no entry.

    Integers are exact unless the family lists the kind; resized uint8 images may differ by one level, arrays that
    differ between Pillow versions by what the case says.
    """
    family, kind = case.spec["family"], case.spec["kind"]
    own = TOLERANCES.get(family, {})
    if dtype == np.uint8 and kind in RESIZED:
        listed = case.spec.get("other_versions", {}).get("differing_arrays", {})
        return {"rel": 0.0, "abs": max(1.0, listed.get(name, {}).get("max_abs", 0.0))}
    if dtype.kind not in "fc" and not (family == "data" and kind in own):
        return {"rel": 0.0, "abs": 0.0}
    default = TOLERANCES["default"]
    for rules in (own.get(kind, {}), own.get("default", {}), default.get(kind, {}), default["default"]):
        prefixes = [prefix for prefix in rules if name.startswith(prefix)]
        if prefixes:
            return rules[max(prefixes, key=len)]
    raise ValueError(f"no tolerance for {family}/{kind} {name}")


def main(folders: list[Path]) -> int:
    """Run the cases in the folders, print a line per array and the totals. Returns the exit code."""
    passed = failed = 0
    for case in find_cases(folders):
        for name, check in run_case(case):
            print(f"{case.name}  {name}  abs {check.max_abs:.3g}  rel {check.max_rel:.3g}  {check.tolerance}  "
                  f"{'ok' if check.ok else 'FAIL'}", flush=True)
            passed, failed = passed + check.ok, failed + (not check.ok)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0
