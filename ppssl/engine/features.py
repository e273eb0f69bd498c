"""Frozen features and the label-cheap classifiers on them: nearest neighbours, and least squares in closed form."""
import numpy as np
import paddle
import paddle.nn.functional as F

from ppssl import dist

NEIGHBOURS, TEMPERATURE = 20, 0.07                        # Wu et al., arXiv 1805.01978, as DINO reports it


@paddle.no_grad()
def extract(features, loader, images) -> tuple:
    """(features [N, D] float32, labels [N] int64) over the loader's images of all ranks, unreadable ones left out.

    features: normalised images [B, 3, H, W] -> [B, D]; images: batch -> normalised images.
    """
    rows, labels = [], []
    for batch in loader.epoch():
        rows.append(features(images(batch)).astype("float32"))
        labels.append(batch["label"])
    dist.barrier()
    rows, labels = dist.gather_rows(paddle.concat(rows)), dist.gather_rows(paddle.concat(labels))
    known = paddle.nonzero(labels >= 0).squeeze(1)
    return rows[known], labels[known]


def knn_accuracy(train_x, train_y, x, y, k: int = NEIGHBOURS) -> float:
    """Percent of rows x [N, D] whose label y [N] wins the vote of the k nearest training rows (cosine, weighted)."""
    train_x, x = F.normalize(train_x, axis=1), F.normalize(x, axis=1)
    classes = int(train_y.max().item()) + 1
    hits = 0.0
    for start in range(0, x.shape[0], 1024):
        near, ids = paddle.matmul(x[start:start + 1024], train_x, transpose_y=True).topk(min(k, train_x.shape[0]), axis=1)
        votes = F.one_hot(train_y[ids.reshape([-1])].reshape(ids.shape), classes)                  # [n, k, classes]
        winner = (votes * paddle.exp(near / TEMPERATURE).unsqueeze(-1)).sum(1).argmax(1)
        hits += (winner == y[start:start + 1024]).astype("float32").sum().item()
    return 100 * hits / x.shape[0]


def ridge_accuracy(train_x, train_y, x, y, penalty: float = 1e-3) -> float:
    """Percent right of a linear classifier fitted to one-hot labels by least squares on standardised features.

    penalty: ridge term as a share of the number of training rows. Solved in float64.
    """
    train_x, train_y, x, y = (np.asarray(t.numpy()) for t in (train_x, train_y, x, y))
    mean, std = train_x.mean(0), train_x.std(0) + 1e-6
    a = np.concatenate([(train_x - mean) / std, np.ones((len(train_x), 1))], axis=1).astype(np.float64)
    b = np.concatenate([(x - mean) / std, np.ones((len(x), 1))], axis=1).astype(np.float64)
    gram = a.T @ a + penalty * len(a) * np.eye(a.shape[1])
    weights = np.linalg.solve(gram, a.T @ np.eye(train_y.max() + 1)[train_y])
    return float(100 * ((b @ weights).argmax(1) == y).mean())
