"""`python -m ppssl.probe RUN`: is the encoder worth something? A linear classifier on frozen features, trained against random.

The classifier is fitted in closed form to the features of the training images; the same is done with a randomly
initialised encoder of the same shape. A quick check, not the linear probe of the papers (main_linprobe.py).
"""
import argparse
import sys

import paddle

from ppssl import dist
from ppssl.command import refusing
from ppssl.data.resize import warm
from ppssl.data.transforms import EvalTransform
from ppssl.engine.features import extract, ridge_accuracy
from ppssl.engine.rebuild import rebuild
from ppssl.engine.run import eval_loader


def accuracy(method) -> float:
    """Percent of val/ right, by least squares on the method's frozen features of train/."""
    transform = EvalTransform(method.config.data.input_size, crop_pct=1.0)
    method.eval_sample = lambda image, label, rng: {"image": transform(image), "label": label}
    method.model.eval()
    sets = [extract(method.model.features, eval_loader(method.config, method, split), method.images) for split in ("train", "val")]
    return ridge_accuracy(*sets[0], *sets[1])


@refusing()
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m ppssl.probe", description=__doc__.split("\n")[0])
    parser.add_argument("run", help="a pretraining checkpoint, or a run folder (its newest one)")
    parser.add_argument("--data_path", help="folder with train/ and val/ (default: what the run was trained on)")
    parser.add_argument("--device", help="cpu or gpu")
    args = parser.parse_args(argv)
    dist.start(args.device)
    warm()
    changes = {"data_path": args.data_path} if args.data_path else {}
    method = rebuild(args.run, **changes)
    trained = accuracy(method)
    paddle.seed(method.config.run.seed + 1)
    random = accuracy(rebuild(args.run, with_weights=False, **changes))
    print(f"linear classifier on frozen features: trained encoder {trained:.1f} %, random encoder {random:.1f} %")
    return 0


if __name__ == "__main__":
    sys.exit(main())
