"""One update of a moving average over all weights of a model, against the authors' loop in PyTorch.

Our side: `python -m ppssl.bench.ema ours MODEL`; the peer the same with `peer`, on tensors of the same shapes.
"""
import sys

import ppssl  # noqa: F401 - prepares the process before Paddle is imported

from ppssl.bench.duel import contender, row, take_turns

DECAY = 0.999


def run(model: str, repeats: int) -> list[dict]:
    """Time updates of the teacher of a pretraining model."""
    from ppssl.models import registry

    registry.find("pretrain", model)
    with contender(["-m", "ppssl.bench.ema", "ours", model]) as ours, contender(["-m", "ppssl.bench.ema", "peer", model], plain=True) as peer:
        take_turns([ours, peer], repeats)
        return [row(f"ema {model}", ours, peer, ours.facts["mib"] / 1024, "gib")]


def main() -> None:
    from convert.reference.stopwatch import serve
    from ppssl.models import registry
    from ppssl.optim.ema import WeightAverage

    side, model = sys.argv[1], registry.create("pretrain", sys.argv[2])
    shapes = [tuple(t.shape) for t in model.state_dict().values()]
    facts = {"mib": sum(t.size for t in model.state_dict().values()) * 4 / 2 ** 20}
    if side == "ours":
        average = WeightAverage(model)
        serve(lambda: average.update(DECAY), framework="ppssl", **facts)
        return
    import torch

    from convert.reference.train import follow

    del model
    pairs = [(torch.randn(shape), torch.randn(shape)) for shape in shapes]
    serve(lambda: follow(pairs, DECAY), framework=f"torch {torch.__version__}", **facts)


if __name__ == "__main__":
    main()
