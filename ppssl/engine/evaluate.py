"""Accuracy of a classifier: every image counted exactly once, whatever the number of ranks."""
import paddle
import paddle.nn.functional as F

from ppssl import dist
from ppssl.engine.precision import autocast


@paddle.no_grad()
def evaluate(model, loader, images, amp: str | None = None) -> dict[str, float]:
    """{'acc1', 'acc5' in percent, 'loss' (cross entropy), 'count'} over the loader's images of all ranks.

    images: batch -> normalised float32 [B, 3, H, W]. Images that could not be read carry label -1 and are left out.
    """
    model.eval()
    totals = paddle.zeros([4])                            # hits at 1, hits at 5, summed loss, images
    for batch in loader.epoch():
        with autocast(amp):
            logits = model(images(batch))
        totals += _sums(logits.astype("float32"), batch["label"])
    dist.barrier()
    hit1, hit5, loss, count = dist.sum_over_ranks(totals).tolist()
    count = max(count, 1.0)
    return {"acc1": 100 * hit1 / count, "acc5": 100 * hit5 / count, "loss": loss / count, "count": count}


def _sums(logits, labels):
    """logits [B, C], labels [B] -> [4]: hits at 1, hits at 5, summed loss, images."""
    counted = (labels >= 0).astype("float32")
    safe = paddle.clip(labels, min=0)
    top = logits.topk(min(5, logits.shape[1]), axis=1)[1] == safe.unsqueeze(1)                     # [B, 5]
    loss = F.cross_entropy(logits, safe, reduction="none").reshape([-1])
    return paddle.stack([(top[:, 0].astype("float32") * counted).sum(), (top.astype("float32").sum(1) * counted).sum(),
                         (loss * counted).sum(), counted.sum()])
