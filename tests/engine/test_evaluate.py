"""Accuracy, features and the classifiers on them."""
import numpy as np
import paddle
import pytest

from ppssl.engine.evaluate import evaluate
from ppssl.engine.features import extract, knn_accuracy, ridge_accuracy


class Given:
    """Batches of logits as 'images', so that the classifier is the identity."""

    def __init__(self, logits, labels, size):
        self.parts = [(logits[i:i + size], labels[i:i + size]) for i in range(0, len(labels), size)]

    def epoch(self):
        for logits, labels in self.parts:
            yield {"image": paddle.to_tensor(logits), "label": paddle.to_tensor(labels)}


@pytest.mark.parametrize("size", [5, 7, 23])
def test_accuracies_and_loss_do_not_depend_on_how_the_images_fall_into_batches(size):
    rng = np.random.default_rng(0)
    logits, labels = rng.standard_normal((23, 12)).astype(np.float32), rng.integers(0, 12, 23)
    found = evaluate(paddle.nn.Identity(), Given(logits, labels, size), lambda batch: batch["image"])
    order = np.argsort(-logits, axis=1)
    log_probs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    assert found["acc1"] == pytest.approx(100 * (order[:, 0] == labels).mean(), abs=1e-4)
    assert found["acc5"] == pytest.approx(100 * (order[:, :5] == labels[:, None]).any(1).mean(), abs=1e-4)
    assert found["loss"] == pytest.approx(-log_probs[np.arange(23), labels].mean(), abs=1e-5) and found["count"] == 23


def test_images_without_a_label_are_left_out():
    logits, labels = np.eye(4, dtype=np.float32), np.array([0, 1, -1, 0])
    found = evaluate(paddle.nn.Identity(), Given(logits, labels, 2), lambda batch: batch["image"])
    assert found["count"] == 3 and found["acc1"] == pytest.approx(200 / 3)
    rows, kept = extract(lambda x: x, Given(logits, labels, 2), lambda batch: batch["image"])
    assert rows.shape == [3, 4] and kept.tolist() == [0, 1, 0]


def clusters(seed: int, n: int = 60):
    """Three clusters in random directions of 8 dimensions."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    centres = np.random.default_rng(7).standard_normal((3, 8))
    return paddle.to_tensor((centres[labels] + 0.2 * rng.standard_normal((n, 8))).astype(np.float32)), paddle.to_tensor(labels)


@pytest.mark.parametrize("classify", [knn_accuracy, ridge_accuracy])
def test_separate_clusters_are_told_apart_and_noise_is_not(classify):
    assert classify(*clusters(0), *clusters(1)) == 100
    shuffled = paddle.to_tensor(np.random.default_rng(0).integers(0, 3, 60))
    assert classify(clusters(0)[0], shuffled, *clusters(1)) < 70
