"""BootMAE's linear probe: on the features of its first blocks, which are better than the last ones'."""
from dataclasses import dataclass

import paddle

from ppssl.config import AT_LEAST_1, option
from ppssl.data.transforms import INCEPTION_MEAN, INCEPTION_STD
from ppssl.errors import BadRequest
from ppssl.methods import linprobe
from ppssl.methods.boot_common import IMAGES
from ppssl.methods.boot_load import read_encoder
from ppssl.methods.classify import fit_encoder
from ppssl.models import registry

DEPTH = 12                                                # the official default, whatever the model


@dataclass(frozen=True)
class Options(linprobe.Options):
    """Keys of BootMAE's linear probe."""
    depth: int | None = option(None, f"number of blocks that are kept (default: {DEPTH}, or all of a smaller model)", must=AT_LEAST_1)
    model_key: str = option("model", "section of the --finetune file; model_ema is the teacher")


class BootLinearProbe(linprobe.LinearProbe):
    """LARS on the head alone. Source: LightDXY/BootMAE `main_linprobe.py`."""

    name, title, families, Options = "bootmae", "BootMAE linear probing", ("bootmae",), Options
    accepted = {"data": IMAGES}
    mean, std = INCEPTION_MEAN, INCEPTION_STD

    def build_model(self):
        name, o = self.config.model, self.options
        with paddle.LazyGuard():
            blocks = registry.create("classifier", name).num_blocks
        if not 1 <= (o.depth or blocks) <= blocks:
            raise BadRequest(f"--depth {o.depth} of {name}, which has {blocks} blocks: give 1 to {blocks}")
        return registry.create("classifier", name, img_size=self.config.data.input_size, num_classes=self.num_classes,
                               global_pool=o.global_pool, depth=o.depth or min(DEPTH, blocks))

    def load(self, path: str) -> list[str]:
        tensors = read_encoder(path, self.model, self.options.model_key)
        kept = {key: value for key, value in tensors.items() if not self.is_cut(key)}
        cut = len(tensors) - len(kept)
        left_out = [f"  {cut} tensors beyond block {self.model.num_blocks} left out"] if cut else []
        return fit_encoder(self.model, kept, path) + left_out

    def is_cut(self, key: str) -> bool:
        """Whether a tensor belongs to a block beyond the kept ones."""
        return key.startswith("blocks.") and int(key.split(".")[1]) >= self.model.num_blocks
