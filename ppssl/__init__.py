"""ppssl: self-supervised vision pretraining (MAE, ConvMAE, FastConvMAE, BootMAE, TEC, BYOL) on PaddlePaddle.

Importing this package first prepares the process for Paddle: see `ppssl/runtime.py`.
"""
from ppssl import runtime

runtime.prepare()

__version__ = "0.1.0"
