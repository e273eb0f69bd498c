"""ppssl: self-supervised vision pretraining (MAE, ConvMAE, FastConvMAE, BootMAE, TEC, BYOL) on PaddlePaddle.

Importing this package first prepares the process for Paddle: see `ppssl/runtime.py`.
"""
from ppssl import runtime

runtime.prepare()

__version__ = "0.1.0"


def __getattr__(name: str):
    """`ppssl.load_backbone`, imported when it is first asked for: it needs Paddle."""
    if name == "load_backbone":
        from ppssl.backbone import load_backbone

        return load_backbone
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
