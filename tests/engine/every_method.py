"""A short run of every method on the command line, and several of them in one start of two ranks."""
import json
from pathlib import Path

import numpy as np

from convert.formats import load
from ppssl import cli
from ppssl.engine import checkpoint
from tests.launching import launch

COMMON = ["--input_size", "16", "--num_workers", "0", "--warmup_epochs", "0", "--epochs", "2", "--device", "cpu", "--print_freq", "2"]
BOOTMAE = ["--mask_num", "12", "--num_mask_patches", "8", "--min_mask_patches_per_block", "2", "--max_mask_patches_per_block", "6",
           "--feature_weight", "1", "--model_ema", "--weight_mask"]
CLASSIFY = ["--model", "vit_tiny_patch4", "--finetune", "MAE", "--global_pool"]
REQUESTS = {                                              # name: task, flags; MAE stands for the file of a pretrained MAE
    "mae": ("pretrain", ["--model", "mae_vit_tiny_patch4", "--lr", "1e-3"]),
    "convmae": ("pretrain", ["--model", "convmae_convvit_tiny_patch4", "--lr", "1e-3"]),
    "fastconvmae": ("pretrain", ["--model", "fastconvmae_convvit_tiny_patch4", "--lr", "1e-3"]),
    "bootmae": ("pretrain", ["--model", "bootmae_tiny_patch4", "--lr", "0.064", *BOOTMAE]),
    "tec": ("pretrain", ["--model", "tec_vit_tiny_patch4", "--lr", "1e-3", "--basemodel_ckpt", "MAE", "--mlp_token", "--pred_att",
                         "--topkatt", "5"]),
    "byol": ("pretrain", ["--model", "byol_resnet_tiny", "--lr", "0.5"]),
    "finetune": ("finetune", [*CLASSIFY, "--lr", "1e-3", "--model_ema", "--model_ema_decay", "0.9"]),
    "linprobe": ("linprobe", [*CLASSIFY, "--lr", "0.1"]),
}


# gradients that are nothing but rounding noise: of keys' biases, and of biases that a batch norm takes out again
UNDECIDED = ("attn.qkv.bias", "decoder_qk.bias", "projetion.l1.bias", "projetion.l2.bias", "predictor.l1.bias")


class Requests:
    """Command lines over one data set and one pretrained MAE, both made in `folder`."""

    def __init__(self, folder: Path, data: Path):
        self.folder, self.data = folder, data
        self.mae = ""
        self.here([self.request("mae", "pretrained", "--epochs", "1", "--batch_size", "4")])
        self.mae = str(self.newest("pretrained"))

    def request(self, name: str, out: str, *flags: str) -> list[str]:
        """[task, *flags] of a run of method `name` that writes to folder/out."""
        task, own = REQUESTS[name]
        return [task, *(self.mae if f == "MAE" else f for f in own), *COMMON, "--data_path", str(self.data),
                "--output_dir", str(self.folder / out), *flags]

    def here(self, requests: list[list[str]]) -> None:
        """Run them in this process, on one rank."""
        for task, *flags in requests:
            assert cli.main(task, flags) == 0, flags

    def on_two_ranks(self, requests: list[list[str]]) -> None:
        """Run them one after another in one start of two ranks."""
        listed = self.folder / f"requests{len(list(self.folder.glob('requests*')))}.json"
        listed.write_text(json.dumps(requests))
        code, said = launch(listed.with_suffix(".log"), "tests/engine/scripts/one_after_another.py", str(listed), timeout=500)
        assert code == 0, said

    def newest(self, out: str) -> Path:
        return checkpoint.found(self.folder / out)[-1]

    def tensors(self, out: str) -> dict[str, np.ndarray]:
        """Everything in the run's last checkpoint: weights, teachers, buffers, optimizer state."""
        return load(self.newest(out)).tree

    def losses(self, out: str) -> list[float]:
        """The logged loss of every epoch."""
        return [json.loads(line)["train_loss"] for line in (self.folder / out / "log.txt").read_text().splitlines()]

    def assert_same(self, first: str, second: str) -> None:
        """Two runs left the same bits."""
        one, two = self.tensors(first), self.tensors(second)
        assert one.keys() == two.keys() and all(np.array_equal(one[k], two[k]) for k in one)

    def assert_equal_to_rounding(self, first: str, second: str) -> None:
        """Two runs left the same but for the rounding of sums in another order."""
        one, two = self.tensors(first), self.tensors(second)
        assert one.keys() == two.keys() and any(k.startswith("optimizer.") for k in one)
        assert all(np.array_equal(one[k], two[k]) for k in one if one[k].dtype.kind == "i")
        decided = [k for k in one if one[k].dtype.kind == "f" and not k.endswith(UNDECIDED)]
        moments = [k for k in decided if k.startswith("optimizer.mom")]
        assert max(np.abs(one[k] - two[k]).max() / np.abs(one[k]).max() for k in moments) < 5e-5
        # a unit in the last place of a second moment of size 9 is 1e-6: above 1 the bound on moments is relative
        assert max(np.abs(one[k] - two[k]).mean() / max(1.0, np.abs(one[k]).max()) for k in moments) < 1e-6
        # single weights with next to no gradient move by the sign of rounding noise, by up to a learning rate
        assert max(np.abs(one[k] - two[k]).mean() for k in set(decided) - set(moments)) < 1e-6
        assert max(np.abs(one[k] - two[k]).max() for k in decided) < 2e-4
