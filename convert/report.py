"""What `inspect` and `verify` say on the screen."""
from collections.abc import Iterator

from convert.inspect import Inspection
from convert.verify import BAND_REASON, Report, Stage

SHOWN = 5                                                 # tensors named where there are more


def inspection_lines(found: Inspection) -> Iterator[str]:
    yield found.path
    yield row("container", f"{found.container}, {found.bytes / 1e6:,.1f} MB")
    yield row("sha256", found.sha256)
    if found.network:
        yield row("model", found.network + (f" (the same keys as {found.like})" if found.like else ""))
        yield row("layout", f"{found.layout}, {found.naming}")
    else:
        yield row("model", f"not recognised: {found.problem}")
    yield row("inside", ", ".join(found.inside) or "nothing known")
    yield row("not inside", ", ".join(found.absent))
    for name, description in found.beside.items():
        yield row(name, description)
    types = ", ".join(f"{count} {name}" for name, count in found.dtypes.items())
    yield row("tensors", f"{found.tensors} with {found.numbers:,} numbers ({types})")
    bad = ", ".join(f"{count} in {path}" for path, count in list(found.nonfinite.items())[:SHOWN])
    yield row("NaN, Inf", f"{sum(found.nonfinite.values())}: {bad}" if bad else "none")
    for i, command in enumerate(found.next):
        yield row("" if i else "next", command)


def row(name: str, text: str) -> str:
    return f"  {name:<14} {text}".rstrip()


def report_lines(report: Report) -> Iterator[str]:
    yield report.network
    for file in report.files:
        yield row("file", f"{file['path']} ({file['format']})")
        yield row("sha256", file["sha256"])
    t = report.tensors
    yield row("weights", f"{t['tensors']} tensors, {t['parameters']:,} numbers, {t['transposed']} transposed; "
                         f"{t['identical']} identical bit for bit, {t['different']} different")
    if report.absent:
        yield row("not in the file", f"{', '.join(report.absent)}: random numbers, the same on both sides")
    if report.assumed:
        yield row("assumed", f"{', '.join(report.assumed)} (no file tells; the same on both sides)")
    yield row("input", report.input)
    yield row("versions", ", ".join(f"{name} {version}" for name, version in report.versions.items()))
    yield f"  {'stage':<34} {'max |a-b|':>10} {'mean |a-b|':>10} {'allowed':>10} {'largest |a|':>11}"
    yield from (stage_line(s) for s in outermost(report.stages))
    yield from (stage_line(s, "result: ") for s in report.results)
    yield f"  allowed: {BAND_REASON}"
    yield f"  {verdict(report)}"


def outermost(stages: tuple[Stage, ...]) -> list[Stage]:
    """The stages that are no part of another, and those outside their band."""
    names = {s.name for s in stages}
    return [s for s in stages if not s.ok or not any(parent in names for parent in parents(s.name))]


def parents(name: str) -> Iterator[str]:
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


def stage_line(s: Stage, prefix: str = "") -> str:
    return (f"  {prefix + s.name:<34} {s.max_abs:10.2e} {s.mean_abs:10.2e} {s.band:10.2e} {s.scale:11.2e}"
            + ("" if s.ok else "  <-- differs"))


def verdict(report: Report) -> str:
    if report.passed:
        return "PASSED: Paddle computes what PyTorch computes"
    if report.first_difference is None:
        return f"FAILED: {report.tensors['different']} tensors of the two files are not the same"
    return f"FAILED: the first stage that differs is {report.first_difference}"
