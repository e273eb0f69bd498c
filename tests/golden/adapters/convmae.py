"""ConvMAE: its cases are of the same kinds as MAE's."""
from tests.golden.adapters.mae import KINDS

__all__ = ["KINDS"]
