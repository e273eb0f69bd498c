"""The reconstructions of both frameworks side by side."""
from pathlib import Path

import numpy as np
import paddle

from convert.contents import Contents
from convert.formats import Refused, atomic_write
from convert.trials import trial_of
from convert.verify import Comparison
from ppssl.visualize import GRAY, MODES, picture, spread_mask, undo_normalisation


def write_picture(path: Path, found: Contents, run: Comparison) -> None:
    """A PNG with a row for PyTorch and one for Paddle: original, masked, reconstruction, that with the visible patches.

    Patches that the run's options say are normalised are shown with the hidden patches' own mean and spread. Raises
    Refused where the network predicts no pixels or the file cannot be written.
    """
    import cv2

    network = found.main.network
    if trial_of(network).image is None:
        raise Refused(f"{network.title} predicts no pixels, so there is nothing to show; leave out --picture")
    if "decoder" in network.absent:
        raise Refused(f"{found.path} holds no decoder, so there is nothing to show; verify the file with the decoder")
    mode = "target" if network.family.name == "bootmae" or found.args.get("norm_pix_loss") else "pixels"
    rows = np.concatenate([panes(run, framework, found, mode) for framework in run.outputs])
    encoded, png = cv2.imencode(".png", picture(rows, f"above PyTorch, below Paddle; {MODES[mode]}")[:, :, ::-1])
    with atomic_write(path, overwrite=True) as file:
        file.write(png.tobytes())


@paddle.no_grad()
def panes(run: Comparison, framework: str, found: Contents, mode: str) -> np.ndarray:
    """The four panes of the first image, float32 [1, 4, H, W, 3] in 0..1."""
    trial, out = trial_of(found.main.network), run.outputs[framework]
    inputs, mask = paddle.to_tensor(run.given["images"][:1]), paddle.to_tensor(out["mask"][:1])
    hidden = spread_mask(mask, inputs.shape[2:])
    per_channel = found.main.network.family.name == "bootmae"
    pixels = undo_normalisation(trial.image(run.model, out["prediction"][:1]), inputs, mask, mode, per_channel)
    mean, std = (paddle.to_tensor(v).reshape([1, -1, 1, 1]) for v in (trial.mean, trial.std))
    original, predicted = inputs * std + mean, pixels * std + mean
    shown = original * (1 - hidden)
    stack = paddle.stack([original, shown + GRAY * hidden, predicted, shown + predicted * hidden], axis=1)
    return stack.transpose([0, 1, 3, 4, 2]).clip(0, 1).numpy()
