"""`python -m ppssl.export CKPT -o OUT --format inference|onnx|pdparams`: a classifier or its features for use elsewhere.

What is written is run against the original first, and only then put in its place.
"""
import argparse
import copy
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import paddle
from paddle import nn
from paddle.static import InputSpec

from convert.formats import load, save_paddle
from ppssl.backbone import input_shape, load_backbone
from ppssl.command import refusing
from ppssl.engine.weights import assign_all
from ppssl.errors import BadRequest
from ppssl.models.convvit import ConvViT
from ppssl.models.convvit_maps import WholeMapConvViT

BATCHES = (1, 3)                                          # sizes that the exported model is tried with
FREE_SIDE = 64                                            # of the images then, where any size will do
NOISE = 2e-5                                              # allowed difference, of the largest output; measured: up to 1.3e-6
OPSET = 17


@dataclass(frozen=True)
class Format:
    """One kind of file. suffix: of the file that is named to the user.

    write(layer, stem): writes the files stem.*; run(layer, stem, images): what they give for images [B, C, H, W].
    """
    suffix: str
    write: Callable[[nn.Layer, Path], None]
    run: Callable[[nn.Layer, Path, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Outcome:
    """difference: the largest one from the original's outputs; scale: the largest of these; outputs: their number."""
    difference: float
    scale: float
    outputs: int
    files: tuple[Path, ...] = ()

    @property
    def ok(self) -> bool:
        return self.difference <= NOISE * self.scale      # false for a NaN


def write_inference(layer: nn.Layer, stem: Path) -> None:
    """A graph for any batch, and its weights."""
    graph = WholeMapConvViT(layer) if isinstance(layer, ConvViT) else layer
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")                   # of tracing: that graphs have no device
        paddle.jit.save(graph, str(stem), input_spec=[InputSpec([None, *input_shape(layer)], "float32", "images")])


def graph_file(stem: Path) -> Path:
    """The graph that `paddle.jit.save` has written: .json, from Paddle 2 .pdmodel."""
    return next(p for p in (stem.with_name(f"{stem.name}.json"), stem.with_name(f"{stem.name}.pdmodel")) if p.exists())


def run_inference(layer: nn.Layer, stem: Path, images: np.ndarray) -> np.ndarray:
    from paddle import inference

    config = inference.Config(str(graph_file(stem)), f"{stem}.pdiparams")
    config.disable_gpu()
    config.disable_mkldnn()                               # its kernels talk to the terminal
    config.disable_glog_info()
    predictor = inference.create_predictor(config)
    given = predictor.get_input_handle(predictor.get_input_names()[0])
    given.reshape(images.shape)
    given.copy_from_cpu(images)
    predictor.run()
    return predictor.get_output_handle(predictor.get_output_names()[0]).copy_to_cpu()


def write_onnx(layer: nn.Layer, stem: Path) -> None:
    """Raises BadRequest where the exporter is not installed."""
    paddle2onnx, _ = onnx_tools()
    with tempfile.TemporaryDirectory(dir=stem.parent) as folder:
        graph = Path(folder) / "graph"
        write_inference(layer, graph)
        # by default the exporter optimises with a tool for which it runs pip by itself; the string "None" leaves it out
        paddle2onnx.export(str(graph_file(graph)), f"{graph}.pdiparams", f"{stem}.onnx", opset_version=OPSET, optimize_tool="None")


def onnx_tools() -> tuple:
    """The exporter and the runtime. Raises BadRequest where they are not installed."""
    try:
        import onnxruntime
        import paddle2onnx
    except ImportError as error:
        raise BadRequest(f"--format onnx needs {error.name}: pip install paddle2onnx==2.1.0 onnxruntime") from None
    return paddle2onnx, onnxruntime


def run_onnx(layer: nn.Layer, stem: Path, images: np.ndarray) -> np.ndarray:
    runtime = onnx_tools()[1]
    options = runtime.SessionOptions()
    options.log_severity_level = 3                        # errors
    session = runtime.InferenceSession(f"{stem}.onnx", options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: images})[0]


def write_pdparams(layer: nn.Layer, stem: Path) -> None:
    """The weights alone, by name, for `paddle.load`."""
    save_paddle(f"{stem}.pdparams", {name: tensor.numpy() for name, tensor in layer.state_dict().items()})


def run_pdparams(layer: nn.Layer, stem: Path, images: np.ndarray) -> np.ndarray:
    """Every weight of a copy is taken from the file."""
    twin = copy.deepcopy(layer)
    assign_all(twin, load(f"{stem}.pdparams").tree)
    return twin(paddle.to_tensor(images)).numpy()


FORMATS = {"inference": Format("", write_inference, run_inference), "onnx": Format(".onnx", write_onnx, run_onnx),
           "pdparams": Format(".pdparams", write_pdparams, run_pdparams)}


@paddle.no_grad()
def compare(layer: nn.Layer, run: Callable[[np.ndarray], np.ndarray]) -> Outcome:
    """What `run` gives for random images, in batches of several sizes, against what the layer gives."""
    rng, (channels, *sides) = np.random.default_rng(0), input_shape(layer)
    shape = (channels, *(side or FREE_SIDE for side in sides))
    batches = [rng.standard_normal((size, *shape)).astype(np.float32) for size in BATCHES]
    theirs, ours = (np.concatenate(rows) for rows in zip(*((run(x), layer(paddle.to_tensor(x)).numpy()) for x in batches)))
    return Outcome(float(np.abs(theirs - ours).max()), float(np.abs(ours).max()), ours.shape[1])


def export(layer: nn.Layer, out: str | Path, format: str) -> Outcome:
    """Write a backbone (see `load_backbone`) in one of FORMATS, if what is written gives what the layer gives.

    Raises BadRequest where the folder or a tool is missing, Refused, OSError.
    """
    kind, out = FORMATS[format], Path(out)
    if not out.parent.is_dir():
        raise BadRequest(f"there is no folder {out.parent}: make it, or choose another -o")
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".export-") as folder:
        stem = Path(folder) / out.name.removesuffix(kind.suffix)
        kind.write(layer, stem)
        outcome = compare(layer, lambda images: kind.run(layer, stem, images))
        if not outcome.ok:
            return outcome
        written = [path for path in sorted(Path(folder).iterdir()) if path.is_file()]
        for path in written:
            os.replace(path, out.parent / path.name)
    return replace(outcome, files=tuple(out.parent / path.name for path in written))


def describe(layer: nn.Layer, outputs: int) -> str:
    """What goes in and what comes out."""
    size = ", ".join(str(side or "any") for side in input_shape(layer))
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (layer.mean, layer.std))
    return (f"in: float32 [any batch, {size}], RGB in 0..1 less ({mean}) over ({std}); "
            f"out: float32 [batch, {outputs}]")


@refusing(OSError)
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m ppssl.export", description=__doc__)
    parser.add_argument("checkpoint", metavar="CKPT", help="a checkpoint, a run folder (its newest one), or any file the converter reads")
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help="name of the files to write; a suffix is added")
    parser.add_argument("--format", choices=FORMATS, default="inference", help="of Paddle Inference, ONNX, or weights (default: %(default)s)")
    parser.add_argument("--features", action="store_true", help="leave out the head: features instead of logits")
    parser.add_argument("--section", default="", help="which weights of the file, such as model_ema (default: the model's own)")
    args = parser.parse_args(argv)
    layer = load_backbone(args.checkpoint, args.section, **({"num_classes": 0} if args.features else {}))
    outcome = export(layer, args.output, args.format)
    verdict = f"largest difference from the original {outcome.difference:.2g} in outputs up to {outcome.scale:.3g}"
    if not outcome.ok:
        print(f"error: nothing written: {verdict}, which is no rounding", file=sys.stderr)
        return 1
    print(f"{', '.join(map(str, outcome.files))}\n{describe(layer, outcome.outputs)}\nchecked: {verdict}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
