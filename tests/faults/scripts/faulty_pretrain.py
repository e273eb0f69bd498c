"""main_pretrain.py with a fault on one rank, at optimizer step FAULT_STEP of rank FAULT_RANK.

FAULT = nan (loss) | nan_gradient | kill | term | slow (rank FAULT_RANK in starting, rank 0 in saving).
"""
import math
import os
import signal
import sys
import time

from ppssl import cli, dist
from ppssl.engine import checkpoint, run
from ppssl.methods.mae import MAE

FAULT, STEP, RANK = os.environ["FAULT"], int(os.environ.get("FAULT_STEP", 2)), int(os.environ.get("FAULT_RANK", 1))
SIGNALS = {"kill": signal.SIGKILL, "term": signal.SIGTERM}
LONG = 35                                                 # seconds: longer than GLOO waits for anything
loss, save, image_folder = MAE.loss, checkpoint.save, run.image_folder


def faulty_loss(self, forward, batch, clock):
    value, stats = loss(self, forward, batch, clock)
    if dist.rank() == RANK and clock.step == STEP:
        if FAULT in SIGNALS:
            os.kill(os.getpid(), SIGNALS[FAULT])
        if FAULT == "nan":
            value = value * math.nan
        if FAULT == "nan_gradient":
            value = value + (value - value).sqrt()        # adds 0, with a gradient of infinity times 0
    return value, stats


def slow_save(*args, **kwargs):
    save(*args, **kwargs)
    if FAULT == "slow":
        time.sleep(LONG)


def slow_images(*args):
    if FAULT == "slow" and dist.rank() == RANK:
        time.sleep(LONG)
    return image_folder(*args)


MAE.loss, checkpoint.save, run.image_folder = faulty_loss, slow_save, slow_images
sys.exit(cli.main("pretrain"))
