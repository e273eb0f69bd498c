"""Every golden case whose family the product has."""
from pathlib import Path

import pytest

from tests.golden.case import find_cases
from tests.golden.runner import run_case

HERE = Path(__file__).parent
CASES = [c for c in find_cases([HERE]) if (HERE / "adapters" / f"{c.spec['family']}.py").exists()]


def slow(case) -> bool:
    """Full-size models with a forward pass, and trainings at 224 px."""
    return case.spec["kind"] == "full_size" and bool(case.arrays)


@pytest.mark.parametrize("case", [pytest.param(c, id=c.name, marks=[pytest.mark.slow] if slow(c) else []) for c in CASES])
def test_the_authors_numbers_are_reproduced(case):
    rows = run_case(case)
    failed = [f"{name}: abs {check.max_abs:.3g} rel {check.max_rel:.3g} allowed {check.tolerance}" for name, check in rows if not check.ok]
    assert rows and not failed, "\n".join(failed)
