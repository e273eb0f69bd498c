"""What ranks tell each other in steps of two micro-batches and of one, and when."""
import numpy as np

from tests.engine.scripts.micro_steps import draw, micro_steps
from tests.launching import launch


def test_gradients_are_shared_once_a_step_and_batch_statistics_in_every_forward_pass(tmp_path):
    code, said = launch(tmp_path / "log", "tests/engine/scripts/micro_steps.py", str(tmp_path))
    assert code == 0, said
    first, second = (dict(np.load(tmp_path / f"rank{rank}.npz")) for rank in (0, 1))
    whole = micro_steps(draw())
    for name in ("conv0", "norm0"):
        assert np.abs(first[name] - second[name]).max() > 1e-3 * np.abs(whole[name]).max(), f"{name} was shared too early"
    for name in ("mean0", "mean1", "mean2", "conv1", "norm1", "conv2", "norm2"):
        assert np.array_equal(first[name], second[name]), name
        assert np.abs(first[name] - whole[name]).max() < 2e-6 * np.abs(whole[name]).max(), name
