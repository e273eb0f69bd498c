"""Two real ranks on CPU (GLOO) against one with the whole batch."""
import json

import numpy as np
import pytest

from convert.formats import load
from ppssl import cli
from ppssl.engine import checkpoint
from tests.launching import launch
from tests.pictures import image_folder

TINY = ["--model", "mae_vit_tiny_patch4", "--input_size", "16", "--num_workers", "0", "--warmup_epochs", "0", "--print_freq", "2",
        "--epochs", "2", "--device", "cpu", "--lr", "1e-3"]


@pytest.mark.parametrize("accum_iter", ["1", "2"])
def test_two_ranks_with_half_the_batch_equal_one_with_the_whole(tmp_path, accum_iter):
    flags = [*TINY, "--data_path", str(image_folder(tmp_path / "data")), "--accum_iter", accum_iter]
    assert cli.main("pretrain", [*flags, "--batch_size", "4", "--output_dir", str(tmp_path / "one")]) == 0
    code, said = launch(tmp_path / "log", "main_pretrain.py", *flags, "--batch_size", "2", "--output_dir", str(tmp_path / "two"))
    assert code == 0, said
    one, two = (load(checkpoint.found(tmp_path / run)[-1]).tree for run in ("one", "two"))
    assert one.keys() == two.keys()
    decided = [k for k in one if not k.endswith("attn.qkv.bias")]       # its key part has no gradient but rounding noise
    gradients = [k for k in decided if k.startswith(("optimizer.moment1", "optimizer.moment2"))]
    assert max(np.abs(one[k] - two[k]).max() / np.abs(one[k]).max() for k in gradients) < 5e-5
    # single weights with next to no gradient move by the sign of rounding noise, by up to a learning rate
    assert max(np.abs(one[k] - two[k]).mean() for k in decided) < 1e-6 and max(np.abs(one[k] - two[k]).max() for k in decided) < 2e-4
    losses = [[json.loads(line)["train_loss"] for line in (tmp_path / run / "log.txt").read_text().splitlines()] for run in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
