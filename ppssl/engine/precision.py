"""Automatic mixed precision: bfloat16 or float16 autocast, and the loss scale that float16 needs.

On CPU Paddle's autocast changes nothing, so only the bookkeeping here is covered by tests.
"""
import contextlib
from dataclasses import dataclass

import paddle

from ppssl.errors import BadRequest

DTYPES = {"bf16": "bfloat16", "fp16": "float16", "none": None}


def autocast_dtype(amp: str) -> str | None:
    """'auto', 'bf16', 'fp16' or 'none' -> dtype of autocast on the current device, None for float32. Raises BadRequest."""
    if amp not in ("auto", *DTYPES):
        raise BadRequest(f"--amp must be auto, {', '.join(DTYPES)}, not {amp}")
    if not paddle.get_device().startswith("gpu"):
        return None
    if amp == "auto":
        amp = "bf16" if paddle.amp.is_bfloat16_supported() else "fp16"
    return DTYPES[amp]


def autocast(dtype: str | None):
    """Context of the forward pass: matrix products in `dtype`, softmax, norms and losses in float32."""
    return paddle.amp.auto_cast(dtype=dtype, level="O1") if dtype else contextlib.nullcontext()


@dataclass
class LossScale:
    """Dynamic loss scaling (Micikevicius et al., arXiv 1710.03740), with PyTorch GradScaler's constants and state."""
    scale: float = 65536.0
    growth_tracker: int = 0
    growth_factor: float = 2.0
    backoff_factor: float = 0.5
    growth_interval: int = 2000

    def update(self, finite: bool) -> None:
        """After every step attempted: halve on overflow, double after `growth_interval` good steps in a row."""
        if not finite:
            self.scale, self.growth_tracker = self.scale * self.backoff_factor, 0
            return
        self.growth_tracker += 1
        if self.growth_tracker == self.growth_interval:
            self.scale, self.growth_tracker = self.scale * self.growth_factor, 0
