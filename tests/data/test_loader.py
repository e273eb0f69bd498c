"""Batches, and what happens when an image, a sample or a worker fails."""
import os
import signal

import numpy as np
import pytest

from ppssl.data.images import ImageFolder
from ppssl.data.loader import Loader, Samples, collate
from ppssl.data.sampler import EvalSampler, TrainSampler
from ppssl.errors import TrainingFailed
from tests.pictures import image_folder


def small(image, label, rng):
    return {"image": image[:4, :4], "label": np.int64(label), "draw": rng.random(3, np.float32)}


def loader(folder, sample=small, workers=0, batch_size=4, **options):
    data = ImageFolder(folder / "train")
    return Loader(Samples(data, sample, **options), TrainSampler(len(data), batch_size), workers)


def draws(loader, epoch=0, first=0):
    return [batch["draw"].numpy() for batch in loader.epoch(epoch, first)]


@pytest.fixture
def folder(tmp_path):
    return image_folder(tmp_path)


def test_workers_do_not_change_a_sample(folder):
    none, two = draws(loader(folder), epoch=2), draws(loader(folder, workers=2), epoch=2)
    assert len(none) == 4 and all(np.array_equal(a, b) for a, b in zip(none, two))


def test_an_epoch_continues_with_the_samples_it_would_have_had(folder):
    whole = draws(loader(folder, workers=1), epoch=1)
    rest = draws(loader(folder, workers=1), epoch=1, first=2)
    assert len(rest) == 2 and all(np.array_equal(a, b) for a, b in zip(whole[2:], rest))


def test_an_unreadable_image_is_replaced_named_once_and_others_stay_as_they_are(folder, capfd):
    before = {tuple(d) for batch in draws(loader(folder)) for d in batch}
    bad = folder / "train" / "class0" / "3.png"
    bad.write_bytes(b"not an image")
    broken = loader(folder)
    after = {tuple(d) for batch in draws(broken) for d in batch}
    broken.check_images(0.001)
    broken.check_images(0.001)
    assert after == before and capfd.readouterr().out.count(str(bad)) == 1


def test_too_many_unreadable_images_stop_the_run(tmp_path):
    folder = image_folder(tmp_path, per_class=40)
    for i in range(12):
        (folder / "train" / "class0" / f"{3 * i}.png").write_bytes(b"")
    broken = loader(folder)
    draws(broken)
    with pytest.raises(TrainingFailed, match="12 unreadable images, the limit is 10"):
        broken.check_images(0.001)


def test_in_evaluation_an_unreadable_image_has_no_label(folder):
    (folder / "train" / "class1" / "0.png").write_bytes(b"")
    data = ImageFolder(folder / "train")
    samples = Samples(data, small, replace=False)
    labels = np.concatenate([b["label"].numpy() for b in Loader(samples, EvalSampler(len(data), 5), 0).epoch()])
    assert sorted(labels) == [-1] + [0] * 8 + [1] * 7


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_in_a_sample_stops_the_run_with_its_text(folder, workers):
    def failing(image, label, rng):
        raise ZeroDivisionError("the sample's own error")

    with pytest.raises(TrainingFailed, match="ZeroDivisionError: the sample's own error"):
        draws(loader(folder, failing, workers))


def test_a_killed_worker_stops_the_run_with_a_hint(folder):
    def deadly(image, label, rng):
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(TrainingFailed, match="a data worker died"):
        draws(Loader_without_probe(folder, deadly))


def Loader_without_probe(folder, sample):
    """A loader whose first sample is not made in this process (the size of a batch is measured on it)."""
    calls = []

    def guarded(image, label, rng):
        calls.append(1)
        return small(image, label, rng) if len(calls) == 1 else sample(image, label, rng)
    return loader(folder, guarded, workers=1)


def test_collate_passes_the_first_error_on():
    batch = collate([{"a": np.zeros(2)}, "Traceback: it broke"])
    assert list(batch) == ["error"] and batch["error"].tobytes() == b"Traceback: it broke"
