"""`python -m ppssl.plot RUN...`: loss, learning-rate and accuracy curves of one or several runs as one picture."""
import argparse
import json
import sys
from pathlib import Path

from ppssl.command import refusing
from ppssl.errors import BadRequest

CURVES = (("loss", ("train_loss", "test_loss")), ("learning rate", ("train_lr",)), ("accuracy, %", ("test_acc1", "test_ema_acc1")))


def read_log(run: str | Path) -> list[dict]:
    """The epochs of a run folder's log.txt, in order; a resumed run's repeated epochs count once, the last time.

    Raises BadRequest where there are none.
    """
    path = Path(run) / "log.txt" if Path(run).is_dir() else Path(run)
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
        epochs = {line["epoch"]: line for line in lines if "epoch" in line}
    except (OSError, ValueError, TypeError) as error:
        raise BadRequest(f"{path} is not the log of a run ({error}): give a run's --output_dir") from None
    if not epochs:
        raise BadRequest(f"{path} holds no finished epoch yet")
    return [epochs[e] for e in sorted(epochs)]


def draw(runs: dict[str, list[dict]], output: str | Path) -> None:
    """One panel per kind of curve that any run has, a colour per run, written as PNG."""
    from matplotlib.figure import Figure

    panels = [(title, keys) for title, keys in CURVES if any(key in epoch for log in runs.values() for epoch in log for key in keys)]
    figure = Figure(figsize=(5 * len(panels), 4), layout="constrained")
    for axes, (title, keys) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
        for colour, (name, log) in enumerate(runs.items()):
            for key, style in zip(keys, ("-", "--")):
                points = [(e["epoch"] + 1, e[key]) for e in log if key in e]
                if points:
                    axes.plot(*zip(*points), style, color=f"C{colour}", label=f"{name}: {key}")
        axes.set(title=title, xlabel="epoch")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    figure.savefig(output, dpi=120)


@refusing(OSError)
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m ppssl.plot", description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders (or their log.txt)")
    parser.add_argument("-o", "--output", default="curves.png", help="picture to write (default: %(default)s)")
    args = parser.parse_args(argv)
    draw({run: read_log(run) for run in args.runs}, args.output)
    print(f"{args.output}: {len(args.runs)} runs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
