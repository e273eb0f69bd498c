"""Does the Paddle model compute what PyTorch computes from the same file? Stage by stage, on one input."""
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from convert.contents import Contents, read
from convert.conversion import official_weights, paddle_weights
from convert.formats import Refused, sha256_of
from convert.recognise import Network

NOISE_FACTOR = 5                                          # Paddle's rounding may be that much of PyTorch's own
FLOOR = 1e-6                                              # of the stage's largest value: some units in the last place
BAND_REASON = (f"{NOISE_FACTOR} times what float32 rounding alone does to PyTorch's own result (its distance from "
               f"float64), plus {FLOOR:g} of the stage's largest value")


@dataclass(frozen=True)
class Stage:
    """One layer's output, or a result, in both frameworks. scale: its largest value; band: the difference allowed."""
    name: str
    max_abs: float
    mean_abs: float
    scale: float
    band: float

    @property
    def ok(self) -> bool:
        return self.max_abs <= self.band                  # a NaN on either side compares false


@dataclass(frozen=True)
class Comparison:
    """A run of both frameworks. given: what went in; outputs: {'PyTorch', 'Paddle': {result: array}}; model: Paddle's."""
    stages: tuple[Stage, ...]
    results: tuple[Stage, ...]
    given: Mapping[str, np.ndarray]
    outputs: Mapping[str, Mapping[str, np.ndarray]]
    model: Any


@dataclass(frozen=True)
class Report:
    """Everything `verify` found.

    files: path, format and SHA-256 of each. absent: parts that the file lacks, which were filled with random numbers,
    the same on both sides. assumed: what neither the file nor a registered model tells. tensors: figures of the weights.
    """
    files: tuple[dict[str, str], ...]
    network: str
    absent: tuple[str, ...]
    assumed: tuple[str, ...]
    tensors: dict[str, int]
    input: str
    stages: tuple[Stage, ...]
    results: tuple[Stage, ...]
    versions: dict[str, str]
    reason: str = BAND_REASON

    @property
    def first_difference(self) -> str | None:
        """The full path of the first stage outside its band."""
        return next((s.name for s in (*self.stages, *self.results) if not s.ok), None)

    @property
    def passed(self) -> bool:
        return self.first_difference is None and not self.tensors["different"]


def verify(path: str | Path, against: str | Path | None = None, model: str | None = None,
           image: str | Path | None = None) -> tuple[Report, Comparison]:
    """Compare a file's weights in PyTorch with the same weights, converted here or in the file `against`, in Paddle.

    model: the registered name that the network has to have. image: a picture to run on; without one, random numbers.
    Raises Refused for files that are no known network or not the same one, and where PyTorch is not installed.
    """
    require_torch()
    first = read(path, model)
    pair = [first] + ([read(against, model)] if against else [])
    official, converted = arrange(pair)
    network = official.main.network
    theirs, ours = official_weights(official.main), paddle_weights(converted.main)
    images = None if image is None else open_image(network, image)
    run = compare(network, fill(network, theirs, False), fill(network, ours, True), images)
    report = Report(tuple(file_facts(found) for found in pair), network.title, network.absent, assumed(network),
                    weight_facts(network, theirs, ours), input_facts(run, image), run.stages, run.results, versions())
    return report, run


def require_torch() -> None:
    try:
        import torch  # noqa: F401
    except ImportError:
        raise Refused("verify runs PyTorch beside Paddle and it is not installed; pip install torch (the CPU build is "
                      "enough)") from None


def arrange(pair: list[Contents]) -> tuple[Contents, Contents]:
    """(the file whose weights PyTorch gets, the one whose weights Paddle gets). Raises Refused: not one network."""
    if len(pair) == 1:
        return pair[0], pair[0]
    official, converted = sorted(pair, key=lambda found: found.main.network.paddle)
    first, second = official.main.network, converted.main.network
    if first.shapes != second.shapes or first.official.keys() != second.official.keys():
        raise Refused(f"{official.path} holds {first.title} and {converted.path} {second.title}, which are not the "
                      "same tensors; name the file that was converted")
    if first.paddle == second.paddle:
        raise Refused(f"both files are in {'Paddle' if first.paddle else 'PyTorch'}'s layout; name a converted one and "
                      "its original")
    return official, converted


def fill(network: Network, weights: Mapping[str, np.ndarray], paddle_layout: bool) -> dict[str, np.ndarray]:
    """The weights with what the file lacks drawn at random: a whole network, the same numbers for both frameworks."""
    whole, rng = {}, np.random.default_rng(0)
    for key, shape in network.shapes.items():
        if key in weights:
            whole[key] = weights[key]
        else:
            drawn = 0.02 * rng.standard_normal(shape, np.float32) + float(key.endswith("norm.weight"))
            whole[key] = drawn.T if paddle_layout and key in network.linear else drawn
    return whole


def compare(network: Network, official: Mapping[str, np.ndarray], ours: Mapping[str, np.ndarray],
            images: np.ndarray | None = None) -> Comparison:
    """Run both. official: all weights in PyTorch's layout; ours: in Paddle's.

    images: float32 [B, C, H, W], normalised; drawn here if None.
    """
    import torch

    from convert.trials import inputs, trial_of

    model = paddle_model(network, ours)
    trial, given = trial_of(network), inputs(network, model, images)
    facts = trial.facts(model)
    state = {key: torch.from_numpy(single_precision(value)) for key, value in official.items()}
    single, double = (run_official(trial, state, given, facts, dtype) for dtype in (torch.float32, torch.float64))
    layers, results = run_ours(trial, model, given, set(single[0]))
    outputs = {"PyTorch": {name: value[0].numpy() for name, value in single[1].items()},
               "Paddle": {name: value[0] for name, value in results.items()}}
    compared = (stages(ours, single[i], double[i]) for i, ours in enumerate((layers, results)))
    return Comparison(*compared, given, outputs, model)


def paddle_model(network: Network, weights: Mapping[str, np.ndarray]):
    """The model with these weights in evaluation mode, on the CPU: a GPU rounds in its own way, perhaps in TF32."""
    import paddle

    from ppssl.engine.weights import assign_all

    paddle.set_device("cpu")
    model = network.build()
    assign_all(model, weights)
    model.eval()
    return model


def single_precision(value: np.ndarray) -> np.ndarray:
    """A writable copy, floats as float32: both frameworks compute in it whatever the file stores."""
    return np.array(value, np.float32 if value.dtype.kind in "fV" else value.dtype)


def stages(ours: Mapping[str, list], single: Mapping[str, list], double: Mapping[str, list]) -> tuple[Stage, ...]:
    """The stages that both frameworks have, in the order they are computed.

    Outputs of a layer that runs several times go together in order. One of another shape (a layer that here sees the
    visible patches alone) is left to the stages after it.
    """
    found = []
    for name in single:
        rest = list(zip(single[name], double[name]))
        for output in ours.get(name, []):
            pair = next((p for p in rest if tuple(p[0].shape) == output.shape), None)
            if pair is not None:
                rest = [p for p in rest if p is not pair]
                found.append(stage(name, output, *(t.numpy() for t in pair)))
    return tuple(found)


def stage(name: str, ours: np.ndarray, single: np.ndarray, double: np.ndarray) -> Stage:
    difference = np.abs(ours.astype(np.float64) - single).reshape(-1)
    scale = float(np.abs(single).max(initial=0))
    band = NOISE_FACTOR * float(np.abs(single - double).max(initial=0)) + FLOOR * scale
    return Stage(name, float(difference.max(initial=0)), float(difference.sum() / max(1, difference.size)), scale, band)


def run_official(trial, state: Mapping, given: Mapping[str, np.ndarray], facts: dict, dtype) -> tuple[dict, dict]:
    """({official path: outputs}, {result: [tensor]}) of the reference in a precision."""
    import torch

    from convert.reference.tape import Tape

    tape = Tape(state, dtype)
    arrays = {name: torch.from_numpy(value) for name, value in given.items()}
    arrays = {name: t.to(dtype) if t.is_floating_point() else t for name, t in arrays.items()}
    with torch.no_grad():
        out = trial.official(tape, arrays, facts)
    return tape.stages, {name: [value] for name, value in out.items()}


def run_ours(trial, model, given: Mapping[str, np.ndarray], names: set[str]) -> tuple[dict, dict]:
    """({path: outputs} of the layers called `names`, {result: [array]}) of the Paddle model."""
    import paddle

    from convert.trials import tensors

    seen: dict[str, list[np.ndarray]] = {}

    def record(name: str):
        def hook(_layer, _inputs, output) -> None:
            if isinstance(output, paddle.Tensor):
                seen.setdefault(name, []).append(output.numpy())
        return hook
    hooks = [layer.register_forward_post_hook(record(name)) for name, layer in model.named_sublayers()
             if name in names]
    with paddle.no_grad():
        results = {name: [value.numpy()] for name, value in trial.ours(model, tensors(dict(given))).items()}
    for hook in hooks:
        hook.remove()
    return seen, results


def open_image(network: Network, path: str | Path) -> np.ndarray:
    """A picture as the network is evaluated on, float32 [1, 3, H, W], normalised. Raises Refused: it cannot be read."""
    import paddle

    from convert.trials import FREE_SIZE, trial_of
    from ppssl.data.device import normalize
    from ppssl.data.images import BadImage, decode
    from ppssl.data.transforms import EvalTransform

    if network.family.task == "head":
        raise Refused(f"a {network.family.title} takes no picture; leave out --image")
    try:
        picture = EvalTransform(network.sizes.get("img_size", FREE_SIZE))(decode(path))
    except (BadImage, OSError) as error:
        raise Refused(f"{path} is no readable picture ({error}); give a JPEG or PNG file") from None
    trial = trial_of(network)
    return normalize(paddle.to_tensor(picture[None]), trial.mean, trial.std).numpy()


def input_facts(run: Comparison, image: str | Path | None) -> str:
    shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in run.given.items())
    return f"{f'{image} and ' if image else ''}random numbers (seed 0): {shapes}"


def file_facts(found: Contents) -> dict[str, str]:
    return {"path": str(found.path), "format": found.loaded.format, "sha256": sha256_of(found.path)}


def assumed(network: Network) -> tuple[str, ...]:
    """What no file tells and no registered model settles. It is the same on both sides, so the comparison holds."""
    if network.entry:
        return ()
    return tuple(f"{name} {value}" for name, value in network.sizes.items() if name.endswith("num_heads"))


def weight_facts(network: Network, official: Mapping[str, np.ndarray], ours: Mapping[str, np.ndarray]
                 ) -> dict[str, int]:
    """How many tensors and numbers there are, how many change their layout, and how many are the same bit for bit."""
    same = [key for key in official if same_bits(official[key], ours[key].T if key in network.linear else ours[key])]
    return {"tensors": len(official), "parameters": sum(value.size for value in official.values()),
            "transposed": len(network.linear & official.keys()), "identical": len(same),
            "different": len(official) - len(same)}


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def versions() -> dict[str, str]:
    import paddle
    import torch

    return {"paddle": paddle.__version__, "torch": torch.__version__, "numpy": np.__version__}
