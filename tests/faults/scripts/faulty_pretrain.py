"""main_pretrain.py with a fault on one rank: FAULT = nan | kill | slow_save, at optimizer step FAULT_STEP of rank FAULT_RANK."""
import math
import os
import signal
import sys
import time

from ppssl import cli, dist
from ppssl.engine import checkpoint
from ppssl.methods.mae import MAE

FAULT, STEP, RANK = os.environ["FAULT"], int(os.environ.get("FAULT_STEP", 2)), int(os.environ.get("FAULT_RANK", 1))
loss, save = MAE.loss, checkpoint.save


def faulty_loss(self, forward, batch, clock):
    value, stats = loss(self, forward, batch, clock)
    if dist.rank() == RANK and clock.step == STEP:
        if FAULT == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if FAULT == "nan":
            value = value * math.nan
    return value, stats


def slow_save(*args, **kwargs):
    save(*args, **kwargs)
    if FAULT == "slow_save":
        time.sleep(35)                                    # longer than GLOO waits for anything


MAE.loss, checkpoint.save = faulty_loss, slow_save
sys.exit(cli.main("pretrain"))
