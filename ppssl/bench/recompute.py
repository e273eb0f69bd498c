"""Peak memory and time of a training step with --recompute and without, in a process each.

`python -m ppssl.bench.recompute again MODEL BATCH` is the side that recomputes, `plain` the other.
"""
import sys

import ppssl  # noqa: F401 - prepares the process before Paddle is imported

from ppssl.bench.duel import contender, row, take_turns
from ppssl.bench.step import ready, stepper


def run(model: str, batch_size: int, repeats: int) -> list[dict]:
    """The recomputing step as 'ours', the plain one as its peer. `memory_ratio`: of the peaks, weights and state included."""
    sides = [["-m", "ppssl.bench.recompute", side, model, str(batch_size)] for side in ("again", "plain")]
    with contender(sides[0]) as again, contender(sides[1]) as plain:
        take_turns([again, plain], repeats)
        return [row(f"recompute {model} batch {batch_size}", again, plain, batch_size, "images",
                    memory_ratio=round(again.peak_mib / plain.peak_mib, 3))]


def main() -> None:
    from convert.reference.stopwatch import serve
    from ppssl.engine.recompute import recompute_blocks

    side, model, batch_size = sys.argv[1], sys.argv[2], int(sys.argv[3])
    method, batch = ready(model, batch_size)
    if side == "again":
        recompute_blocks(method.network, None)
    serve(stepper(method, batch), framework=side)


if __name__ == "__main__":
    main()
