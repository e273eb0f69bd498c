"""ConvMAE: its cases are of the same kinds as MAE's."""
from tests.golden.adapters import mae

KINDS = {kind: mae.KINDS[kind] for kind in
         ("pretrain_forward", "pretrain_train", "finetune_forward", "finetune_train", "linprobe_train", "full_size")}
